"""Reads and writes reward models as Hugging Face sequence classifiers with one label (Llama and Qwen 2 families)."""

import copy
import itertools
import pathlib
from typing import Any

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import export as model_export
from qempo_jax.models import export_tensors
from qempo_jax.models import hugging_face
from qempo_jax.models import hugging_face_out
from qempo_jax.models import placing
from qempo_jax.models import reward_head
from qempo_jax.models import safetensors_files
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import expand_path
from qempo_jax.paths import read_json

_SCORE, _CLASSIFIER = "score.weight", "ForSequenceClassification"
_READ_AT = "score_read_at"  # Key of config.json.
_CLASSES = {"llama": "Llama", "qwen2": "Qwen2"}


def is_checkpoint(folder: pathlib.Path) -> bool:
  """True if a folder's config.json names a sequence classifier."""
  try:
    return any(name.endswith(_CLASSIFIER) for name in _read(folder).get("architectures") or ())
  except InputError:
    return False


def is_own(folder: pathlib.Path) -> bool:
  """True if `export` wrote the folder: the score is then read at the token that ends the response."""
  return _read(folder).get(_READ_AT) == "end_token"


def load(folder: pathlib.Path) -> tuple[ModelConfig, dict[str, Any], int | None]:
  """Reads a sequence-classification checkpoint with one label, such as `LlamaForSequenceClassification`.

  Args:
    folder: `config.json` and safetensors.

  Returns:
    (the decoder's config, parameters as float32 NumPy arrays, the padding token's id or None). PyTorch transformers
    scores the token before padding, see `reward_head.last_unlike_padding`.

  Raises:
    InputError: the classifier has another number of labels, or the errors of `conversion.load`.
  """
  content = _read(folder)
  labels = len(content.get("id2label") or {}) or content.get("num_labels", 2)
  if labels != 1:
    raise InputError(f"{folder} has {labels} labels; a reward model has num_labels=1")
  config = reward_head.without_projection(hugging_face.from_hugging_face(content))
  headers = safetensors_files.stored_tensors(folder)
  if _SCORE not in headers:
    raise InputError(f"{folder} has no tensor {_SCORE!r}; is the checkpoint complete?")
  stored = headers.pop(_SCORE)
  if stored.shape != (1, config.hidden_size):
    raise InputError(f"tensor {_SCORE!r} has shape {stored.shape}, not {(1, config.hidden_size)}")
  headers = safetensors_files.language_model(headers, content)
  params = safetensors_files.decoder(headers, config, folder, placing.on_host())
  score = np.asarray(safetensors_files.get(stored), np.float32)
  if not np.isfinite(score).all():
    raise InputError(f"tensor {_SCORE!r} holds NaN or infinity; the checkpoint is damaged")
  return config, params | {"score": score.T}, content.get("pad_token_id")


def export(
  target: str | pathlib.Path,
  params: dict[str, Any],
  config: ModelConfig,
  *,
  pad_token_id: int,
  tokenizer: Any = None,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes a folder that `AutoModelForSequenceClassification.from_pretrained` loads.

  Args:
    target: output folder; it must be absent or empty.
    params: the whole tree.
    config: the decoder's config, of the Llama or Qwen 2 family.
    pad_token_id: a token that ends no text; PyTorch transformers scores the last other token.
    tokenizer: a transformers tokenizer, written with that token as its padding; None: not written.
    dtype: dtype of the written weights.
    max_shard_bytes: largest weight file, bytes.

  Returns:
    The folder.

  Raises:
    InputError: another family, or the errors of `export.export_model`.
  """
  family = hugging_face_out.family_of(config)
  if family not in _CLASSES:
    raise InputError(f"{family!r} reward models are not exported; only {', '.join(_CLASSES)} are")
  longest = getattr(tokenizer, "model_max_length", None)
  content = hugging_face_out.to_hugging_face(
    config,
    dtype=dtype,
    max_length=longest if isinstance(longest, int) and longest < 10**9 else None,
    tokens=model_export.token_ids(tokenizer) if tokenizer is not None else None,
  )
  content |= {
    "architectures": [_CLASSES[family] + _CLASSIFIER],
    "num_labels": 1,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "pad_token_id": pad_token_id,
    "problem_type": "regression",
    _READ_AT: "end_token",
  }
  head = export_tensors.host_part(params["score"], ()).T
  body = export_tensors.to_hugging_face_names(params, config, dtype=dtype)
  tensors = itertools.chain(body, [(_SCORE, export_tensors.cast(_SCORE, head, dtype))])
  with model_export.new_folder(target) as folder:
    if folder is None:
      for _ in tensors:  # Another host writes; this one takes part in gathering.
        pass
      return expand_path(target)
    export_tensors.write_safetensors(folder, tensors, max_shard_bytes=max_shard_bytes)
    model_export.write_json(folder / "config.json", content)
    if tokenizer is not None:
      tokenizer = copy.deepcopy(tokenizer)
      tokenizer.pad_token, tokenizer.padding_side = tokenizer.convert_ids_to_tokens(pad_token_id), "right"
      tokenizer.save_pretrained(folder)
  return expand_path(target)


def _read(folder: pathlib.Path) -> dict[str, Any]:
  return read_json(folder / "config.json", "give a model folder")
