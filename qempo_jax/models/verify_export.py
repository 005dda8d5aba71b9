"""Verifies exported folders: their logits in PyTorch transformers, if installed, against ours."""

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
  """Result of a verification.

  Attributes:
    max_difference: largest absolute difference of two logits; None if nothing was compared.
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
    folder: output of `export.export_model`.
    params: the exported parameters.
    config: the decoder's config.
    dtype: dtype of the exported weights; ours are rounded to it before the comparison.
    tolerance: largest absolute difference that passes.
    seed: seed of the tokens.
    stop_tokens: ids that end a response; the folder's generation settings must list them, with or without PyTorch.

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
  ours = jax_logits(params, config, tokens, valid, dtype=dtype)
  if theirs.shape != ours.shape:
    raise InputError(f"{folder} gives logits of shape {theirs.shape} instead of {ours.shape}; don't use it")
  difference = float(np.abs(theirs - ours).max())
  if not difference <= tolerance:
    raise InputError(
      f"{folder} does not compute the exported model: its logits differ by {difference:.2e}, more than {tolerance:.0e};"
      " don't use it"
    )
  return Verification(
    difference,
    f"verified with PyTorch transformers: logits of {len(ours)} tokens differ by at most {difference:.2e}",
  )


def jax_logits(params, config: ModelConfig, tokens, valid, *, dtype: str = "float32") -> np.ndarray:
  """Float32 logits [tokens, V] of valid tokens, with weights rounded to the dtype.

  Columns of padding and forbidden tokens are kept, as in PyTorch transformers.
  """
  # transformers selects long frequencies by a batch's longest row.
  settings = {"compute_dtype": "float32", "num_tokens": None, "forbidden": (), "max_length": int(valid.sum(1).max())}
  config = dataclasses.replace(config, **settings)
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
  """Ids at which transformers' `generate` stops: from the generation settings, or from config.json without them."""
  generation, config = (special_tokens.read_settings(folder, name) for name in special_tokens.SETTINGS_FILES)
  return special_tokens.listed_stop_ids(generation or config)


def _rows(vocab_size: int, seed: int):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, vocab_size, (_ROWS, _LENGTH)).astype(np.int32)
  lengths = _LENGTH - 5 * np.arange(_ROWS)
  return tokens, np.arange(_LENGTH) >= _LENGTH - lengths[:, None]


def _pytorch_logits(folder: pathlib.Path, tokens, valid) -> np.ndarray:
  import torch
  import transformers

  try:
    model, loading_info = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
  except Exception as error:  # transformers raises many kinds.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(f"PyTorch transformers cannot load {folder} ({reason}); don't use it") from error
  if wrong := {kind: names for kind, names in loading_info.items() if names}:
    raise InputError(f"PyTorch transformers loads {folder} with {wrong}; don't use it")
  mask = torch.tensor(valid)
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    output = model.eval()(
      input_ids=torch.tensor(tokens).long(), attention_mask=mask.long(), position_ids=positions, use_cache=False
    )
  return output.logits[mask].float().numpy()
