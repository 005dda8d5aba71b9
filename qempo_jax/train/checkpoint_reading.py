"""Reading one checkpoint: whole, proven damaged, or not to be read just now; only the second is `Damaged`."""

from collections.abc import Callable
import os
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from qempo_jax.errors import InputError
from qempo_jax.train import checksums
from qempo_jax.train.checksums import Damaged

FORMAT = 3


def read(manager: ocp.CheckpointManager, folder: str | os.PathLike[str], step: int, targets: dict[str, Any]):
  """Restores items of one checkpoint and compares their bits with those that were saved.

  Args:
    manager: restores the arrays.
    folder: of all checkpoints.
    step: of this one.
    targets: shapes and shardings by item.

  Returns:
    (items by name, the host's data).

  Raises:
    Damaged: it is proven damaged, on every process alike.
    InputError: it could not be read, or is of another model, optimizer or format.
  """
  place = epath.Path(folder) / str(step)
  items = about = host = damage = None
  try:
    about, host = record(place)
    _check_shapes(place, about["leaves"], targets)
    items = _restored(manager, place, targets)
  except Damaged as error:
    damage = error
  if _on_any_process(damage is not None):
    raise damage or Damaged("another process found a damaged file")
  for name in targets:
    if checksums.bits(items[name]) != about["bits"][name]:
      raise Damaged(f"the bits of {name} are not those that were saved")
  return items, host


def record(place: epath.Path) -> tuple[dict[str, Any], Any]:
  """(what a checkpoint says of itself, the host's data); raises as `read`."""
  path = place / "host" / "metadata"  # of Orbax's JSON handler
  found = _tried(place, lambda: checksums.read_json(path))
  about, sealed = found.get("about"), "sum" in found
  if sealed:
    about = _tried(place, lambda: checksums.read_sealed(path))["about"]
  version = about.get("format") if isinstance(about, dict) else 1 if _tried(place, (place / "state").exists) else None
  if version != FORMAT and (sealed or version in (1, 2)):
    raise InputError(
      f"checkpoint {place} is of format {version}, and this version reads format {FORMAT} alone: finish that run with the"
      " version that began it, or use another workdir"
    )
  if not sealed:
    raise Damaged(f"{path} lacks its checksum")
  return about, found["host"]


def shapes(tree, item: str) -> dict[str, str]:
  """Type and shape of every leaf of an item by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {item + jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def first_line(error: BaseException) -> str:
  """Of an error's message, for a line of our own."""
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:300]


def _restored(manager, place: epath.Path, targets: dict[str, Any]):
  """The arrays; where they cannot be read, the checksums of all their files decide whether that is damage."""
  arguments = {name: _restore_as(target) for name, target in targets.items()}
  try:
    return manager.restore(int(place.name), args=ocp.args.Composite(**arguments))
  except Exception as error:  # Each storage has its own, and none of them tells damage from a passing fault.
    for name in targets:
      _tried(place, lambda name=name: checksums.check_files(place / name))
    raise _unreadable(place, error) from error


def _tried(place: epath.Path, call: Callable):
  """What the call returns; an error that is no proof of damage becomes one line with its own message."""
  try:
    return call()
  except (Damaged, InputError):
    raise
  except Exception as error:
    raise _unreadable(place, error) from error


def _unreadable(place: epath.Path, error: Exception) -> InputError:
  return InputError(
    f"checkpoint {place} could not be read ({first_line(error)}); nothing proves it damaged, and nothing was changed:"
    " mend the cause, then start the same command again"
  )


def _check_shapes(place: epath.Path, there: dict[str, str], targets: dict[str, Any]) -> None:
  here = {}
  for item, target in targets.items():
    here |= shapes(target, item)
  there = {name: leaf for name, leaf in there.items() if ("params" if name.startswith("params") else "rest") in targets}
  for name in [*here, *there]:
    if here.get(name) != there.get(name):
      raise InputError(
        f"checkpoint {place} is of another model or optimizer: {name} is {there.get(name, 'absent')} there and"
        f" {here.get(name, 'absent')} here; use the config that it was made with, or another workdir"
      )


def _restore_as(target):
  return checksums.TreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))


def _on_any_process(flag: bool) -> bool:
  """Whether it is so on any process of the run; each must ask."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.bool_(flag)).any())
