"""Reads one checkpoint: it is whole, provably damaged (`Damaged`), or unreadable for another reason (`InputError`)."""

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
  """Restores items of one checkpoint and compares their bits with the saved checksums.

  Args:
    manager: restores the arrays.
    folder: folder of all checkpoints.
    step: step of this one.
    targets: shapes and shardings by item.

  Returns:
    (items by name, the host's data).

  Raises:
    Damaged: damage is proven, on every process.
    InputError: the checkpoint could not be read, or belongs to another model, optimizer or format.
  """
  path = epath.Path(folder) / str(step)
  items = about = host = damage = None
  try:
    about, host = record(path)
    _check_shapes(path, about["leaves"], targets)
    items = _restored(manager, path, targets)
  except Damaged as error:
    damage = error
  if _on_any_process(damage is not None):
    raise damage or Damaged("another process found a damaged file")
  for name in targets:
    if checksums.bits(items[name]) != about["bits"][name]:
      raise Damaged(f"the bits of {name} are not those that were saved")
  return items, host


def record(path: epath.Path) -> tuple[dict[str, Any], Any]:
  """(the checkpoint's metadata, the host's data); raises as `read`."""
  file = path / "host" / "metadata"  # Written by Orbax's JSON handler.
  content = _tried(path, lambda: checksums.read_json(file))
  about, sealed = content.get("about"), "sum" in content
  if sealed:
    about = _tried(path, lambda: checksums.read_sealed(file))["about"]
  version = about.get("format") if isinstance(about, dict) else 1 if _tried(path, (path / "state").exists) else None
  if version != FORMAT and (sealed or version in (1, 2)):
    raise InputError(
      f"checkpoint {path} has format {version}, and this version reads format {FORMAT} alone: finish that run with the"
      " version that began it, or use another workdir"
    )
  if not sealed:
    raise Damaged(f"{file} lacks its checksum")
  return about, content["host"]


def shapes(tree, item: str) -> dict[str, str]:
  """Dtype and shape of every leaf of an item, by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {item + jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def first_line(error: BaseException) -> str:
  """First line of an error's message, at most 300 characters, for one of our own."""
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:300]


def _restored(manager, path: epath.Path, targets: dict[str, Any]):
  """The arrays; if they cannot be read, the checksums of all their files decide whether that is damage."""
  arguments = {
    name: checksums.TreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    for name, target in targets.items()
  }
  try:
    return manager.restore(int(path.name), args=ocp.args.Composite(**arguments))
  except Exception as error:  # Each storage raises its own exceptions, and none tells damage from a passing fault.
    for name in targets:
      _tried(path, lambda name=name: checksums.check_files(path / name))
    raise _unreadable(path, error) from error


def _tried(path: epath.Path, call: Callable):
  """Result of the call; an error that does not prove damage becomes one line with its own message."""
  try:
    return call()
  except (Damaged, InputError):
    raise
  except Exception as error:
    raise _unreadable(path, error) from error


def _unreadable(path: epath.Path, error: Exception) -> InputError:
  return InputError(
    f"checkpoint {path} could not be read ({first_line(error)}); nothing proves it damaged, and nothing was changed:"
    " fix the cause, then start the same command again"
  )


def _check_shapes(path: epath.Path, saved: dict[str, str], targets: dict[str, Any]) -> None:
  expected = {}
  for item, target in targets.items():
    expected |= shapes(target, item)
  saved = {name: leaf for name, leaf in saved.items() if ("params" if name.startswith("params") else "rest") in targets}
  for name in [*expected, *saved]:
    if expected.get(name) != saved.get(name):
      raise InputError(
        f"checkpoint {path} is of another model or optimizer: {name} is {saved.get(name, 'absent')} there and"
        f" {expected.get(name, 'absent')} here; use the config that it was made with, or another workdir"
      )


def _on_any_process(flag: bool) -> bool:
  """True if the flag is set on any process of the run; every process must call it."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.bool_(flag)).any())
