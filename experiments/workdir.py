"""A run's folder: made once, with the config that filled it, and never mixed with another config's run."""

import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from ml_collections.config_dict import ConfigDict

from qempo_jax.errors import InputError

_ABSENT = "absent"
_MAX_LISTED = 3


def open_workdir(workdir: str | os.PathLike[str], config: ConfigDict) -> pathlib.Path:
  """Makes `workdir` and writes config.json there, or checks that it belongs to a run of the same config.

  Args:
    workdir: The folder of the run.
    config: The run's complete config.

  Returns:
    The folder, ready to write into.

  Raises:
    InputError: The folder can't be written, or holds another config's run; nothing in it was changed.
  """
  folder = pathlib.Path(workdir).expanduser()
  text = config.to_json_best_effort(indent=2) + "\n"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # Fails where the folder can't be written.
      pass
    if (folder / "config.json").exists():
      _check_same(folder, json.loads(text))
    else:
      write_atomically(folder / "config.json", text)
  except OSError as error:
    reason = error.strerror or str(error)
    raise InputError(
      f"Can't write the workdir {folder} ({reason}): choose another --workdir."
    ) from error
  return folder


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file so that other readers, and a crash, see either the old contents or the whole new ones."""
  descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(scratch, 0o644)
    os.replace(scratch, path)
  except BaseException:
    pathlib.Path(scratch).unlink(missing_ok=True)
    raise


def _check_same(folder: pathlib.Path, config: dict[str, Any]) -> None:
  """Raises InputError if the run in `folder` has another config; lists the first keys that differ."""
  path = folder / "config.json"
  try:
    there = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))
  except ValueError as error:
    raise InputError(
      f"{path} is damaged, so the run in {folder} can't be continued: choose another --workdir, or remove it."
    ) from error
  here = dict(_leaves(config))
  keys = list(dict.fromkeys([*here, *there]))
  pairs = [(key, there.get(key, _ABSENT), here.get(key, _ABSENT)) for key in keys]
  differing = [f"{key} is {old} there and {new} here" for key, old, new in pairs if old != new]
  if differing:
    more = f", and {len(differing) - _MAX_LISTED} more" if len(differing) > _MAX_LISTED else ""
    raise InputError(
      f"{folder} holds the run of another config ({', '.join(differing[:_MAX_LISTED])}{more}): choose another "
      "--workdir, or remove that folder if its run is not needed."
    )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
  """Yields (dotted key, value as JSON) of every leaf; text compares NaN as equal to itself."""
  if isinstance(tree, dict) and (tree or not prefix):
    for key, value in tree.items():
      yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
  else:
    yield prefix, json.dumps(tree)
