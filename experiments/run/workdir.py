"""A run's folder: made once, with the config that filled it, and never mixed with another run, of any config."""

from collections.abc import Iterator
from collections.abc import Sequence
import fcntl
import functools
import json
import os
import pathlib
import socket
import sys
import tempfile
from typing import Any

from ml_collections.config_dict import ConfigDict

from configs import base
from qempo_jax import paths
from qempo_jax.errors import InputError

# Keys that may differ in a resumed run: devices, faults, logging and checkpoints, none of which changes its computation.
MAY_CHANGE = ("checkpoint.", "faults.", "logging.", "sampling.mesh")
MAY_CHANGE += tuple(f"compute.{key}" for key in ("distributed", "mesh", "dcn_mesh", "reference_memory"))
LOCK = ".lock"
DATA = "data.json"  # Hashes of the run's data.

_ABSENT = "absent"
_MAX_LISTED = 3
# Descriptors of this process's locks, by inode; closing one gives its lock back.
_held: dict[tuple[int, int], int] = {}
_opened: dict[pathlib.Path, paths.HeldFolder] = {}  # This process's workdirs.


def check_workdir(workdir: str | os.PathLike[str], config: ConfigDict, *, lock: bool = True) -> None:
  """Raises the errors of `open_workdir` and changes nothing: to be called before anything slow."""
  folder = _folder(workdir)
  check_writable(folder, "the workdir", "choose another --workdir")
  if holds_run(folder):
    check_same(folder, json.loads(config.to_json_best_effort()))
  if lock and (folder / LOCK).exists() and _inode(folder / LOCK) not in _held:
    with open(folder / LOCK, "rb") as file:
      _flock(file.fileno(), folder)


def check_writable(folder: pathlib.Path, what: str, remedy: str) -> None:
  """Raises InputError if a folder can neither be written nor made."""
  existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise InputError(f"Can't write {what} {folder} ({existing} is in the way): {remedy}.")


def open_workdir(workdir: str | os.PathLike[str], config: ConfigDict, *, lock: bool = True) -> pathlib.Path:
  """Makes `workdir` and writes config.json there, or checks that it belongs to a run of the same config.

  Args:
    workdir: The folder of the run.
    config: The run's complete config.
    lock: Keep other processes from opening it with a lock too, for as long as this process lives.

  Returns:
    The folder, ready to write into.

  Raises:
    InputError: The folder can't be written, is in use, or holds another config's run; nothing in it was changed.
  """
  folder = _folder(workdir)
  text = config.to_json_best_effort(indent=2) + "\n"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # Fails where the folder can't be written.
      pass
    if lock:
      _lock(folder)
    if holds_run(folder):
      check_same(folder, json.loads(text))
    else:
      paths.write_atomically(folder / "config.json", text)
    _opened[folder.absolute()] = paths.HeldFolder(folder)
  except OSError as error:
    reason = error.strerror or str(error)
    raise InputError(f"Can't write the workdir {folder} ({reason}): choose another --workdir.") from error
  return folder


def check_in_place(path: pathlib.Path) -> None:
  """Raises InputError if the workdir that a path is in was replaced since this process opened it."""
  for folder, held in _opened.items():
    if path.absolute().is_relative_to(folder):
      held.check()


def write(path: pathlib.Path, data: str | bytes) -> None:
  """Writes a whole file as `paths.write_atomically` does, never into another run's workdir."""
  check_in_place(path)
  paths.write_atomically(path, data)


def holds_run(folder: pathlib.Path) -> bool:
  """True where a run has left more than its config: one that died before its first step has not."""
  own = {"config.json", DATA, LOCK, "tensorboard"}
  left = set(os.listdir(folder)) - own if (folder / "config.json").exists() else set()
  full = lambda path: any(path.iterdir()) if path.is_dir() else path.lstat().st_size
  return any(full(folder / name) for name in left)


def of_the_run(config: ConfigDict, workdir: pathlib.Path, groups: Sequence[str]) -> ConfigDict:
  """The config with the run's own settings in these groups: one run may be exported or evaluated in several ways."""
  there = _saved(workdir) if (workdir / "config.json").is_file() else config
  same = ConfigDict(config.to_dict())
  for group in groups:
    del same[group]
    if isinstance(there.get(group), (dict, ConfigDict)):
      same[group] = ConfigDict(dict(there[group]))
  return same


def _folder(workdir) -> pathlib.Path:
  if str(workdir).startswith("gs:/"):
    raise InputError(
      f"The workdir {workdir} must be a folder of this machine, such as a mounted bucket; checkpoints alone may go to"
      " gs://BUCKET/FOLDER, by --config.checkpoint.folder."
    )
  return paths.expand_path(workdir)


def _lock(folder: pathlib.Path) -> None:
  """Holds the folder's lock until this process ends, however it ends; the system gives it back."""
  if _inode(folder / LOCK) in _held:
    return
  if (folder / LOCK).is_symlink():
    raise InputError(f"{folder / LOCK} is a symbolic link, which no run makes: remove it, or choose another --workdir.")
  # A link is not followed: its target would be emptied.
  descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
  try:
    _flock(descriptor, folder)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
  except BaseException:
    os.close(descriptor)
    raise
  _held[_inode(folder / LOCK)] = descriptor


def _inode(path: pathlib.Path) -> tuple[int, int] | None:
  """(device, number); None without a file."""
  try:
    found = path.lstat()
  except FileNotFoundError:
    return None
  return found.st_dev, found.st_ino


def _flock(descriptor: int, folder: pathlib.Path) -> None:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    raise InputError(
      f"The workdir {folder} is in use by {holder}: wait for that run, stop it, or choose another --workdir."
    ) from error
  except OSError as error:  # Some network file systems have no locks.
    print(f"{folder}: no lock against a second run ({error.strerror})", file=sys.stderr)


def _give_back_in_child() -> None:
  """A forked child shares its parent's locks, and would hold them after the parent's death."""
  for descriptor in _held.values():
    os.close(descriptor)
  _held.clear()


os.register_at_fork(after_in_child=_give_back_in_child)


def check_same(folder: pathlib.Path, config: dict[str, Any]) -> None:
  """Raises InputError if the run in `folder` has another config; lists the first keys that differ."""
  there = _saved(folder)
  if "objective" in there or any("objective" in group for group in there.values() if isinstance(group, dict)):
    raise InputError(
      f"{folder} holds a run of version 0.1.0, whose keys objective.* are config.method and config.constraints now: continue it"
      " with that version, or choose another --workdir."
    )
  if differing := differences(there, config):
    raise InputError(
      f"{folder} holds the run of another config ({differing}): set those keys back, or choose another --workdir."
    )


def _saved(folder: pathlib.Path) -> dict[str, Any]:
  return paths.read_json(folder / "config.json", f"so the run in {folder} can't be continued: choose another --workdir")


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
  """Says which keys of two configs differ, the first few; "" where none does that matters to a resumed run.

  A key that was declared after `there` was written has its default there: such a run did what the default does.
  """
  there, here = dict(_leaves(there)), dict(_leaves(here))
  there |= {key: default for key in here if key not in there and (default := _default(key))}
  keys = [key for key in dict.fromkeys([*here, *there]) if not _may_change(key)]
  pairs = [(key, there.get(key, _ABSENT), here.get(key, _ABSENT)) for key in keys]
  differing = [f"{key} is {old} there and {new} here" for key, old, new in pairs if old != new]
  more = f", and {len(differing) - _MAX_LISTED} more" if len(differing) > _MAX_LISTED else ""
  return ", ".join(differing[:_MAX_LISTED]) + more


def _may_change(key: str) -> bool:
  """Of one run's config, or of one of several in a demo's, each under its method's name."""
  return any(key.startswith(name) or f".{name}" in key for name in MAY_CHANGE)


def _default(key: str) -> str | None:
  """A declared key's default as JSON, also under the name of one method of several; None for a key of no config."""
  parts = key.split(".")
  return next((found for i in range(len(parts)) if (found := _defaults().get(".".join(parts[i:])))), None)


@functools.cache
def _defaults() -> dict[str, str]:
  return dict(_leaves(json.loads(base.get_config().to_json_best_effort())))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
  """Yields (dotted key, value as JSON) of every leaf; text compares NaN as equal to itself."""
  if isinstance(tree, dict) and (tree or not prefix):
    for key, value in tree.items():
      yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
  else:
    yield prefix, json.dumps(tree)
