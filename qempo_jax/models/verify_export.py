"""Does an exported folder compute what its parameters compute here? PyTorch transformers says so, where it is there."""

import dataclasses
import importlib.util
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax.data import special_tokens
from qempo_jax.errors import InputError
from qempo_jax.models import export_tensors
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

_ROWS, _LENGTH = 3, 24


class Verification(NamedTuple):
  """What a comparison found.

  Attributes:
    max_difference: largest absolute difference of two logits, or None where nothing was compared.
    message: one line to print.
  """

  max_difference: float | None
  message: str


def verify_export(
  folder: pathlib.Path,
  params,
  config: ModelConfig,
  *,
  dtype: str,
  tolerance: float,
  seed: int = 0,
  stop_tokens: tuple[int, ...] = (),
) -> Verification:
  """Loads a folder with PyTorch transformers and compares its logits with ours, in float32.

  The rows are random tokens of three lengths, padded on the left.

  Args:
    folder: what `export.export_model` wrote.
    params: the parameters that were exported.
    config: the decoder's shape.
    dtype: of the exported weights; ours are rounded to it before they are compared.
    tolerance: largest absolute difference that passes.
    seed: of the tokens.
    stop_tokens: ids that end a response; the folder's generation settings must list them, with PyTorch or without.

  Returns:
    The difference, or that PyTorch or transformers is not installed.

  Raises:
    InputError: a stop token is not listed, transformers cannot load the folder, or the logits differ by more than the
      tolerance.
  """
  if missing := set(stop_tokens) - _listed_stops(folder):
    raise InputError(
      f"{folder} would not stop at token {min(missing)}, which ends a response: generation_config.json must list it in"
      " eos_token_id"
    )
  if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
    return Verification(None, f"{folder} was not verified: {' and '.join(missing)} is not installed here")
  tokens, valid = _rows(config.vocab_size, seed)
  theirs = _pytorch_logits(folder, tokens, valid)
  ours = own_logits(params, config, tokens, valid, dtype=dtype)
  if theirs.shape != ours.shape:
    raise InputError(f"{folder} gives logits of shape {theirs.shape} instead of {ours.shape}; don't use it")
  difference = float(np.abs(theirs - ours).max())
  if not difference <= tolerance:
    raise InputError(
      f"{folder} does not compute what was exported: its logits differ by {difference:.2e}, more than {tolerance:.0e};"
      " don't use it"
    )
  return Verification(
    difference,
    f"verified with PyTorch transformers: logits of {len(ours)} tokens differ by at most {difference:.2e}",
  )


def own_logits(params, config: ModelConfig, tokens, valid, *, dtype: str = "float32") -> np.ndarray:
  """Float32 logits [tokens, V] of the rows' own tokens, with weights rounded to the dtype.

  Columns that only pad the vocabulary or are forbidden are kept, as PyTorch transformers keeps them.
  """
  config = dataclasses.replace(config, compute_dtype="float32", num_tokens=None, forbidden=())
  rounded = jnp.dtype(export_tensors.DTYPES[dtype])

  @jax.jit
  def logits(params, tokens, valid):
    params = jax.tree.map(lambda leaf: leaf.astype(rounded).astype(jnp.float32), params)
    positions = jnp.cumsum(valid, axis=1) - 1
    mask = transformer.causal_mask(positions, valid)
    hidden = transformer.forward(params, config, tokens, positions, mask, remat=False)
    return transformer.logits(hidden, transformer.unembedding(params), config)

  with jax.default_matmul_precision("highest"):
    return np.asarray(logits(jax.tree.map(jnp.asarray, params), tokens, valid), np.float32)[valid]


def _listed_stops(folder: pathlib.Path) -> set[int]:
  """The ids at which transformers' `generate` stops: of the generation settings, or of config.json without them."""
  generation, described = (special_tokens.read_settings(folder, name) for name in special_tokens.SETTINGS_FILES)
  return special_tokens.listed_stop_ids(generation or described)


def _rows(vocab_size: int, seed: int):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, vocab_size, (_ROWS, _LENGTH)).astype(np.int32)
  lengths = _LENGTH - 5 * np.arange(_ROWS)
  return tokens, np.arange(_LENGTH) >= _LENGTH - lengths[:, None]


def _pytorch_logits(folder: pathlib.Path, tokens, valid) -> np.ndarray:
  import torch
  import transformers

  try:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
  except Exception as error:  # whatever transformers trips over
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(f"PyTorch transformers cannot load {folder} ({reason}); don't use it") from error
  if wrong := {kind: names for kind, names in found.items() if names}:
    raise InputError(f"PyTorch transformers loads {folder} with {wrong}; don't use it")
  mask = torch.tensor(valid)
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    output = model.eval()(
      input_ids=torch.tensor(tokens).long(), attention_mask=mask.long(), position_ids=positions, use_cache=False
    )
  return output.logits[mask].float().numpy()
