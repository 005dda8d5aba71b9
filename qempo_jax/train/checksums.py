"""Checksums of a checkpoint: over the bits of its arrays, over each of their files, and over the host's record.

They prove damage. An unreadable checkpoint with matching checksums is whole, and the fault lies elsewhere.
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
from typing import Any
import zlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

SUMS = "checksums.json"  # File in the folder of each item.

_BLOCK = 2**22  # Bytes of a file in memory at once.
_UNSIGNED = {1: np.uint8, 2: np.uint16}  # Wider types are read as one or two numbers of 4 bytes.


class Damaged(Exception):
  """Proof that a checkpoint is damaged: a file is missing, its content does not parse, or a checksum differs."""


class TreeHandler(ocp.PyTreeCheckpointHandler):
  """Orbax's pytree handler, extended by a checksum of every file before the checkpoint gets its name."""

  def __init__(self, check: Callable[[], None] = lambda: None, **options):
    """Takes Orbax's options, and `check`, whose exception ends a save before anything is named or deleted."""
    super().__init__(**options)
    self._check = check

  def finalize(self, directory: epath.Path) -> None:
    """Completes the files, then writes their checksums in the same folder, on the first process."""
    self._check()
    super().finalize(directory)
    if jax.process_index() == 0:
      files = {str(path.relative_to(directory)): _file_sum(path) for path in _files(directory)}
      (directory / SUMS).write_text(sealed({"files": files}))


@ocp.args.register_with_handler(TreeHandler, for_save=True)
class TreeSave(ocp.args.PyTreeSave):
  """Arguments of saving by `TreeHandler`."""


@ocp.args.register_with_handler(TreeHandler, for_restore=True)
class TreeRestore(ocp.args.PyTreeRestore):
  """Arguments of restoring by `TreeHandler`."""


def check_files(folder: epath.Path) -> None:
  """Compares every file of an item's folder with its checksum.

  Raises:
    Damaged: a file is missing, or differs from the written one.
    OSError: a file cannot be read.
  """
  for name, expected in read_sealed(folder / SUMS)["files"].items():
    path = folder / name
    try:
      actual = _file_sum(path)
    except FileNotFoundError as error:
      raise Damaged(f"{path} is missing") from error
    if actual != expected:
      raise Damaged(f"the checksum of {path} differs")


def seal(record: dict[str, Any]) -> dict[str, Any]:
  """The record with `sum`, the CRC-32 of the rest of the record as JSON."""
  return record | {"sum": _record_sum(record)}


def sealed(record: dict[str, Any]) -> str:
  """The record with its sum, as JSON."""
  return json.dumps(seal(record))


def read_sealed(path: epath.Path) -> dict[str, Any]:
  """The record in a file, without its sum.

  Raises:
    Damaged: the file is missing from its folder, is not JSON, or its sum differs.
    OSError: the file cannot be read.
  """
  record = read_json(path)
  expected = record.pop("sum", None)
  if expected != _record_sum(record):
    raise Damaged(f"the checksum of {path} differs")
  return record


def read_json(path: epath.Path) -> dict[str, Any]:
  """The JSON object in a file; raises Damaged or OSError as `read_sealed`."""
  try:
    record = json.loads(path.read_bytes())
  except FileNotFoundError as error:
    if not path.parent.parent.exists():  # The whole checkpoint was removed, which is not damage.
      raise
    raise Damaged(f"{path} is missing") from error
  except (ValueError, RecursionError) as error:
    raise Damaged(f"{path} is not JSON ({error})") from error
  if not isinstance(record, dict):
    raise Damaged(f"{path} is no JSON object")
  return record


def bits(tree) -> int:
  """Sum of all bits as numbers, modulo 2^32: exact, and so independent of the sharding.

  Each process sums the shards of its own devices, each part of an array once; accelerators compute their own sums.
  """
  parts = []
  for index, leaf in enumerate(map(jnp.asarray, jax.tree.leaves(tree))):
    shards = [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]
    parts += [(2 * index + 1, _host_bits(shard) if _is_on_cpu(shard) else _device_bits(shard)) for shard in shards]
  total = sum(weight * int(part) for weight, part in parts) % 2**32
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    total = int(np.sum(multihost_utils.process_allgather(np.uint32(total)), dtype=np.uint32))
  return total


def _host_bits(array):
  """NumPy's sum: XLA's sum of integers takes about ten times as long on a CPU."""
  flat = np.ascontiguousarray(array).reshape(-1)
  return np.sum(flat.view(_UNSIGNED.get(flat.dtype.itemsize, np.uint32)), dtype=np.uint32)


@jax.jit
def _device_bits(array):
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  unsigned = jax.lax.bitcast_convert_type(array, _UNSIGNED.get(array.dtype.itemsize, np.uint32))
  return jnp.sum(unsigned, dtype=jnp.uint32)


def _is_on_cpu(array) -> bool:
  return next(iter(array.devices())).platform == "cpu"


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _file_sum(path: epath.Path) -> list[int]:
  """[bytes, CRC-32]."""
  size = total = 0
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      size, total = size + len(block), zlib.crc32(block, total)
  return [size, total]


def _record_sum(record: dict[str, Any]) -> int:
  """CRC-32 of the record as read back from JSON, with sorted keys."""
  return zlib.crc32(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())
