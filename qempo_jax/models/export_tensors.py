"""Exports weights tensor by tensor: the parameter tree under Hugging Face's names, in shards of safetensors."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import functools
import itertools
import json
import pathlib

import jax
import ml_dtypes
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import tensor_names
from qempo_jax.models.config import ModelConfig

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def to_hugging_face_names(params, config: ModelConfig, *, dtype: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
  """Tensors of a checkpoint, one by one, with Hugging Face's names and shapes.

  Only one tensor is on the host at a time, under any sharding.

  Args:
    params: the parameter tree, of NumPy or JAX arrays.
    config: the decoder's config.
    dtype: a key of `DTYPES`; None: the parameters' dtype.

  Yields:
    (name, array); matrices are [out, in].

  Raises:
    InputError: the dtype is unknown, or a tensor is not finite or overflows the dtype.
  """
  part = lambda spec: host_part((params["layers"] if spec.index else params)[spec.key], spec.index)
  for name, fused in itertools.groupby(tensor_names.tensor_specs(config), lambda spec: spec.name):
    specs = list(fused)
    yield name, cast(name, tensor_names.fuse(specs, [spec.to_hugging_face(part(spec)) for spec in specs]), dtype)


def host_part(leaf, index: tuple[int, ...]) -> np.ndarray:
  """A leaf's part with the given leading indices as a NumPy array; devices gather no more than that part."""
  if isinstance(leaf, np.ndarray):
    return leaf[index]
  mesh = getattr(leaf.sharding, "mesh", None)
  return np.asarray(_part(mesh)(leaf, index))


@functools.cache
def _part(mesh):
  """A jitted (leaf, index) -> part, replicated on all devices and hosts."""
  part = lambda leaf, index: leaf[index]
  whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(part, out_shardings=whole)


def cast(name: str, tensor: np.ndarray, dtype: str | None) -> np.ndarray:
  """A contiguous tensor in the dtype, checked to be finite before and after."""
  if dtype is not None and dtype not in DTYPES:
    raise InputError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
  if not np.isfinite(tensor).all():
    raise InputError(
      f"tensor {name!r} holds NaN or infinity, so nothing was exported; go back to an earlier checkpoint"
    )
  with np.errstate(over="ignore"):
    stored = np.ascontiguousarray(tensor if dtype is None else tensor.astype(DTYPES[dtype], copy=False))
  if not np.isfinite(stored).all():
    raise InputError(f"tensor {name!r} does not fit into {dtype}; export as bfloat16 or float32")
  return stored


def write_safetensors(
  folder: pathlib.Path,
  named_tensors: Iterable[tuple[str, np.ndarray]],
  *,
  max_shard_bytes: int,
  stem: str = "model",
) -> list[str]:
  """Writes tensors as `STEM.safetensors`, or as several shards with `STEM.safetensors.index.json`.

  At most one shard is in memory.

  Args:
    folder: an existing folder.
    named_tensors: (name, array), in the order of writing.
    max_shard_bytes: largest file, bytes of tensors; a larger tensor gets a file of its own.
    stem: start of the file names.

  Returns:
    Names of the files of tensors.

  Raises:
    InputError: the size is not positive, there are no tensors, or a name is repeated.
  """
  if max_shard_bytes < 1:
    raise InputError(f"max_shard_bytes={max_shard_bytes} must be positive")
  shards: list[list[str]] = []
  total = 0
  for shard in _grouped(named_tensors, max_shard_bytes):
    _save(folder / f"{stem}-{len(shards) + 1}.partial", shard)
    shards.append(list(shard))
    total += sum(tensor.nbytes for tensor in shard.values())
  counts = collections.Counter(name for shard in shards for name in shard)
  if repeated := {name for name, count in counts.items() if count > 1}:
    raise InputError(f"{tensor_names.listed(repeated)} came twice; a checkpoint holds each tensor once")
  if not counts:
    raise InputError("there are no tensors to write")
  if len(shards) == 1:
    files = [f"{stem}.safetensors"]
  else:
    files = [f"{stem}-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
  for number, file in enumerate(files, start=1):
    (folder / f"{stem}-{number}.partial").rename(folder / file)
  return files


def _grouped(named_tensors, max_shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
  shard, size = {}, 0
  for name, tensor in named_tensors:
    if shard and (size + tensor.nbytes > max_shard_bytes or name in shard):
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += tensor.nbytes
  if shard:
    yield shard


def _save(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  import safetensors.numpy

  # Readers in PyTorch require this metadata.
  try:
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    raise InputError(f"{path.parent} cannot be written ({error}): free space there, or name another folder") from error
