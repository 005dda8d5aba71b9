"""Reads a Hugging Face folder of `config.json` and safetensors, one file or shards with an index."""

from collections.abc import Callable
from collections.abc import Mapping
import json
import math
import pathlib
import re
from types import MappingProxyType
from typing import NamedTuple

import ml_dtypes
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import hugging_face
from qempo_jax.models import mxfp4
from qempo_jax.models import tensor_names
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.hugging_face_families import WRAPPED
from qempo_jax.paths import read_json

WHY_NO_PICKLE = (
  "pickled weights (.bin, .pt) are never loaded, because opening a pickle runs the code inside it; save the "
  "model as safetensors (transformers' save_pretrained does)"
)
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# Not parts of the decoder: rotary tables of old checkpoints, and heads that predict later tokens.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$|^mtp\.")
# Starts of a language model's names within a model of several senses, and its own.
_INNER = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head."}


class Stored(NamedTuple):
  """Header of a stored tensor.

  Attributes:
    file: path of its file.
    dtype: safetensors' name of its dtype.
    shape: its shape.
    offset: its first byte in the file.
    parts: the stored tensors, by name, of which it is made; empty if it is stored itself.
  """

  file: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  offset: int = 0
  parts: Mapping[str, "Stored"] = MappingProxyType({})


def load(folder: pathlib.Path, make_leaf: Callable) -> tuple[ModelConfig, dict]:
  """Reads a checkpoint's folder, one tensor at a time; see `conversion.load`.

  Args:
    folder: holds `config.json` and either `model.safetensors`, or shards with `model.safetensors.index.json`,
      or one file of any name; float32, float16 or bfloat16.
    make_leaf: builds a leaf from its parts; see `tensor_names.assemble`.

  Returns:
    (the decoder's config, its parameters).

  Raises:
    InputError: a tensor or file is missing, unexpected, damaged or of another shape; the message names it.
  """
  content = read_json(folder / "config.json", "give a model folder")
  hugging_face.check_type(content)
  headers = language_model(stored_tensors(folder), content)
  if content.get("model_type") in WRAPPED and "tie_word_embeddings" not in content:
    # The language model's description leaves it out, or has its own default in place of the whole model's.
    content |= {"tie_word_embeddings": "lm_head.weight" not in headers}
  config = hugging_face.from_hugging_face(content)
  return config, decoder(headers, config, folder, make_leaf)


def decoder(headers: dict[str, Stored], config: ModelConfig, folder: pathlib.Path, make_leaf: Callable) -> dict:
  """Reads the parameters of a decoder after comparing the files' headers with its tensors.

  Args:
    headers: of all tensors, from `stored_tensors`.
    config: the decoder's config.
    folder: of the files, for messages.
    make_leaf: as in `load`.

  Raises:
    InputError: a tensor is missing, unexpected, or of another shape or dtype.
  """
  headers = _experts_apart(headers, config)
  _check(headers, config, folder)
  return tensor_names.assemble(lambda name: get(headers[name]), config, make_leaf)


def _check(headers: dict[str, Stored], config: ModelConfig, folder: pathlib.Path) -> None:
  """Compares the files' headers with the tensors of this decoder, before any tensor is read."""
  if config.num_layers > len(headers):
    raise InputError(
      f"{folder}: config.json says {config.num_layers} blocks, but there are {len(headers)} tensors; is it this"
      " checkpoint's own?"
    )
  specs = {spec.name: spec for spec in tensor_names.tensor_specs(config)}
  if missing := set(specs) - set(headers):
    raise InputError(f"{folder} has no tensor {tensor_names.listed(missing)}; is the checkpoint complete?")
  ignored = _unused_keys(config)
  extra = {name for name in set(headers) - set(specs) - {"lm_head.weight"} - ignored if not _DERIVED.search(name)}
  if extra:
    raise InputError(
      f"{folder} holds {tensor_names.listed(extra)}, which the decoder of its config.json does not have;"
      " is config.json this checkpoint's own?"
    )
  known = (*_DTYPES, mxfp4.NAME)
  for name, spec in specs.items():
    tensor_names.check_shape(spec, headers[name].shape)
    if headers[name].dtype not in known:
      raise InputError(f"tensor {name!r} is stored as {headers[name].dtype}; only {', '.join(known)} weights are read")
  if config.tie_embeddings:
    _check_tied(headers, folder)


def _unused_keys(config: ModelConfig) -> set[str]:
  """Names of the keys and values that published files hold for blocks that reuse those of others."""
  shared = [block for block, kind in enumerate(config.kinds) if kind.reuses]
  return {tensor_names.block_name(key, block, config) for block in shared for key in ("key", "value", "key_norm")}


def stored_tensors(folder: pathlib.Path) -> dict[str, Stored]:
  """Headers of all tensors of a checkpoint's folder, by name, with one header for blocks and scales of MXFP4.

  Raises:
    InputError: there are none, or a file or the index is damaged.
  """
  if (folder / "model.safetensors").is_file():
    return _with_mxfp4(_open(folder / "model.safetensors"))
  if (folder / INDEX).is_file():
    return _with_mxfp4(_sharded(folder))
  files = sorted(folder.glob("*.safetensors"))
  if len(files) == 1:
    return _with_mxfp4(_open(files[0]))
  if files:
    raise InputError(f"{folder} holds {len(files)} .safetensors files and no {INDEX}; fetch the index too")
  pickled = any(file.suffix in (".bin", ".pt", ".pth") for file in folder.iterdir())
  raise InputError(f"{folder} holds no .safetensors file" + (f": {WHY_NO_PICKLE}" if pickled else ""))


def language_model(headers: dict[str, Stored], content: Mapping) -> dict[str, Stored]:
  """The headers of the language model within a model of several senses, by its own names; others as they are.

  Args:
    headers: of all tensors.
    content: of config.json.
  """
  architecture = content.get("model_type")
  inner = architecture in WRAPPED.values() and any(name.startswith(tuple(_INNER)) for name in headers)
  if architecture not in WRAPPED and not inner:  # PyTorch transformers saves language models alone by both names.
    return headers
  found = {}
  for name, stored in headers.items():
    start = next((start for start in _INNER if name.startswith(start)), None)
    if start or name == "lm_head.weight":
      found[_INNER[start] + name.removeprefix(start) if start else name] = stored
  return found


def _experts_apart(headers: dict[str, Stored], config: ModelConfig) -> dict[str, Stored]:
  """The headers, with each expert's own matrices in place of tensors [experts, rows, inputs] of all of them.

  Published mixtures of Qwen3.5 hold such tensors, older families one for each expert; PyTorch transformers reads both.
  """
  if config.layout == "mixtral":  # With such tensors, its other names change too.
    headers = {name.replace(".mlp.", ".block_sparse_moe."): stored for name, stored in headers.items()}
  found, joined = dict(headers), set()
  for spec in tensor_names.tensor_specs(config):
    start, _, own = spec.name.partition(".experts.")
    if not own or len(spec.index) < 2 or spec.name in headers:
      continue
    name = f"{start}.experts." + ("down_proj" if spec.key == "expert_down" else "gate_up_proj")
    if name not in headers:
      continue
    stored, rows = headers[name], spec.stored[0]
    whole = (config.num_experts, rows if spec.key == "expert_down" else 2 * rows, spec.stored[1])
    if stored.shape != whole:
      raise InputError(f"tensor {name!r} has shape {stored.shape}, which does not fit the configuration's {whole}")
    joined.add(name)
    first = spec.index[1] * whole[1] + (rows if spec.key == "expert_up" else 0)
    offset = stored.offset + first * whole[2] * _DTYPES.get(stored.dtype, np.dtype(np.uint8)).itemsize
    found[spec.name] = stored._replace(shape=spec.stored, offset=offset)
  return {name: stored for name, stored in found.items() if name not in joined}


def _sharded(folder: pathlib.Path) -> dict[str, Stored]:
  weight_map = read_json(folder / INDEX, "fetch it again").get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f"{folder / INDEX} has no weight_map; fetch it again")
  shards = {}
  for file in sorted(set(weight_map.values()), key=str):
    if not isinstance(file, str) or pathlib.PurePath(file).name != file or not (folder / file).is_file():
      raise InputError(f"{folder / INDEX} names the file {file!r}, which is not in the folder; fetch it")
    shards[file] = _open(folder / file)
  if lost := {name for name, file in weight_map.items() if name not in shards[file]}:
    raise InputError(f"{folder / INDEX} names {tensor_names.listed(lost)}, which its file does not hold")
  if unlisted := {name for tensors in shards.values() for name in tensors} - set(weight_map):
    raise InputError(f"{folder / INDEX} has no entry for {tensor_names.listed(unlisted)}; fetch it again")
  return {name: shards[file][name] for name, file in weight_map.items()}


def _with_mxfp4(headers: dict[str, Stored]) -> dict[str, Stored]:
  """The headers, with one in place of each pair of NAME_blocks and NAME_scales."""
  for blocks in [name for name, stored in headers.items() if name.endswith("_blocks") and stored.dtype == "U8"]:
    name = blocks.removesuffix("_blocks")
    parts = {part: headers.pop(part) for part in (blocks, f"{name}_scales") if part in headers}
    shapes = [part.shape for part in parts.values()]
    if len(parts) < 2 or len(shapes[0]) != 4 or shapes[0] != (*shapes[1], mxfp4.BYTES):
      raise InputError(f"tensors {tensor_names.listed(parts)} have shapes {shapes}; MXFP4 has a scale for 16 bytes")
    experts, outputs, groups, size = shapes[0]
    shape = (experts, 2 * groups * size, outputs)
    headers[name] = Stored(parts[blocks].file, mxfp4.NAME, shape, parts=parts)
  return headers


def _open(path: pathlib.Path) -> dict[str, Stored]:
  import safetensors

  try:
    with safetensors.safe_open(path, framework="numpy"):  # Checks header and size.
      pass
    with open(path, "rb") as file:
      length = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
      name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
      for name, entry in header.items()
    }
  except Exception as error:  # safetensors raises its own untyped errors.
    raise InputError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def get(stored: Stored) -> np.ndarray:
  """Reads one tensor; MXFP4 is dequantised to bfloat16.

  Its bytes are read, not mapped: pages of a file that stays mapped would add up to its whole size. And safetensors parses
  a file's whole header for each tensor that it is asked for, of which a mixture has thousands.
  """
  if stored.parts:
    return mxfp4.dequantise(*map(get, stored.parts.values()))
  dtype = _DTYPES.get(stored.dtype, np.dtype(np.uint8))  # blocks and scales of MXFP4
  return np.fromfile(stored.file, dtype, math.prod(stored.shape), offset=stored.offset).reshape(stored.shape)


def _check_tied(headers: dict[str, Stored], folder: pathlib.Path) -> None:
  """Checks that an output projection in a tied checkpoint equals the embedding."""
  name, embedding = "lm_head.weight", "model.embed_tokens.weight"
  if name in headers and not np.array_equal(get(headers[name]), get(headers[embedding])):
    raise InputError(
      f"{folder}: config.json ties the embeddings, but {name!r} differs from {embedding!r};"
      " set tie_word_embeddings to false"
    )
