"""Paths and JSON files that a user names, and whole files written at once: anything wrong with them is one line."""

from collections.abc import Callable
import contextlib
import json
import math
import os
import pathlib
import tempfile
from typing import Any
import weakref

from qempo_jax.errors import InputError
from qempo_jax.errors import cause


def expand_path(text: str | os.PathLike[str]) -> pathlib.Path:
  """The path with ~ expanded; it need not exist.

  Raises:
    InputError: no file can have that name (too long, an unknown ~user, a zero byte), or its folder cannot be searched.
  """
  try:
    path = pathlib.Path(text).expanduser()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      path.stat()
    if long := next((part for part in path.parts if len(os.fsencode(part)) > 255), None):
      raise OSError(f"a name of {len(os.fsencode(long))} bytes is too long")
  except (OSError, RuntimeError, ValueError) as error:
    shown = str(text) if len(str(text)) < 100 else f"{str(text)[:80]}..."
    reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"the path {shown!r} cannot be used ({reason.rstrip('.')}): correct it") from error
  return path


class HeldFolder:
  """A folder that nobody may replace. It is kept open, so that its inode number stays its own."""

  def __init__(self, path: pathlib.Path):
    """Opens the folder, which exists."""
    self._path, self._descriptor = path, os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    weakref.finalize(self, os.close, self._descriptor)

  def check(self) -> None:
    """Raises InputError if the path leads to anything else; a path that leads nowhere is left to the next write."""
    with contextlib.suppress(FileNotFoundError):
      if not os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
        raise InputError(
          f"{self._path} was replaced under the run, and is not written to any more: put the run's own folder back, then start"
          " the same command again"
        )


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  """The JSON object in a file.

  Args:
    path: the file.
    remedy: advice of the message if it cannot be read.

  Raises:
    InputError: the file is absent, cannot be read, or is no JSON object.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{path} cannot be read ({cause(error)}); {remedy}") from error
  if not isinstance(content, dict):
    raise InputError(f"{path} is no JSON object; {remedy}")
  return content


def json_numbers(value: Any, *, infinity: Callable[[float], Any] = str) -> Any:
  """Nested dicts and lists in numbers that JSON has: NaN becomes None, and infinity the text "inf" or `infinity` of it."""
  if isinstance(value, dict):
    return {key: json_numbers(item, infinity=infinity) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [json_numbers(item, infinity=infinity) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None if math.isnan(value) else infinity(value)
  return value


def write_atomically(path: pathlib.Path, data: str | bytes) -> None:
  """Writes a file so that other readers, and a crash, see either the old contents or the whole new ones.

  Args:
    path: the file, in an existing folder.
    data: text is written as UTF-8, with ? for a lone surrogate.

  Raises:
    InputError: the file cannot be written, as on a full disk; the old contents stay.
  """
  try:
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
      with os.fdopen(descriptor, "wb") as file:
        file.write(data.encode("utf-8", "replace") if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
      os.chmod(scratch, 0o644)
      os.replace(scratch, path)
    except BaseException:
      pathlib.Path(scratch).unlink(missing_ok=True)
      raise
  except OSError as error:
    raise InputError(
      f"{path} cannot be written ({error.strerror or error}): free space there or make it writable, then start the same"
      " command again"
    ) from error
