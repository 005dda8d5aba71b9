"""Rows of local files, one by one, each with the name of its place; a broken row is a row that says what is wrong."""

from collections.abc import Iterator
from collections.abc import Sequence
import glob
import gzip
import hashlib
import json
import pathlib
from typing import Any
from typing import NamedTuple
import zlib

from qempo_jax.errors import InputError

SUFFIXES = {"jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet", ".pq")}


class RawRow(NamedTuple):
  """A row as it stands in its file.

  Attributes:
    place: file and row, for messages.
    entry: the object; None where the row is broken.
    error: what is wrong with the row, as what follows its place; empty where nothing is.
  """

  place: str
  entry: Any
  error: str


def matching(pattern: str) -> list[pathlib.Path]:
  """The files of a path or glob, sorted by name; bucket addresses (gs://) need etils and its cloud access.

  Raises:
    InputError: there is none.
  """
  if "://" in pattern:
    return _remote(pattern)
  path = pathlib.Path(pattern).expanduser()
  if path.is_file():
    return [path]
  found = [pathlib.Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if pathlib.Path(name).is_file()]
  if not found:
    hint = "it is a folder; name its files, such as PATH/*.jsonl" if path.is_dir() else "there is no such file"
    raise InputError(f"data file {pattern} cannot be read ({hint})")
  return found


def content_hash(paths: Sequence[pathlib.Path]) -> str:
  """SHA-256 over the paths, which messages name, and the bytes of files, in order."""
  whole = hashlib.sha256()
  for path in paths:
    part = hashlib.sha256()
    try:
      with path.open("rb") as file:
        while block := file.read(1 << 20):
          part.update(block)
    except OSError as error:
      raise InputError(f"data file {path} cannot be read ({error})") from error
    whole.update(json.dumps([str(path), part.hexdigest()]).encode())
  return whole.hexdigest()


def rows(paths: Sequence[pathlib.Path], kind: str) -> Iterator[RawRow]:
  """Every row of the files, broken ones too; blank lines are none.

  Args:
    paths: the files.
    kind: "jsonl" or "parquet"; a name that ends in .gz is decompressed.

  Raises:
    InputError: a file as a whole can't be read.
  """
  for path in paths:
    try:
      yield from (_parquet if kind == "parquet" else _json_lines)(path)
    except (OSError, EOFError, zlib.error) as error:
      raise InputError(f"data file {path} cannot be read ({error})") from error


def parse(line: str) -> Any:
  """JSON, without its quiet losses: a key that stands twice, and numbers that JSON does not have.

  Raises:
    ValueError: the text is not such JSON; RecursionError where it is nested too deeply.
  """
  return json.loads(line, object_pairs_hook=_object, parse_constant=_constant)


def _object(pairs):
  found = dict(pairs)
  if len(found) != len(pairs):
    names = [key for key, _ in pairs]
    twice = next(key for key in names if names.count(key) > 1)
    raise ValueError(f"the key {twice[:40]!r} stands twice")
  return found


def _constant(name):
  raise ValueError(f"{name} is no JSON number")


def _json_lines(path) -> Iterator[RawRow]:
  with path.open("rb") as plain:
    file = gzip.open(plain) if path.suffix == ".gz" else plain
    for number, line in enumerate(file, start=1):
      line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
      if line.strip():
        yield _json_row(f"{path}, line {number}", line)


def _json_row(place, line) -> RawRow:
  try:
    return RawRow(place, parse(line.decode("utf-8")), "")
  except UnicodeDecodeError as error:
    return RawRow(place, None, f"is not UTF-8 (byte {error.start})")
  except json.JSONDecodeError as error:
    return RawRow(place, None, f"is not JSON ({error.msg})")
  except RecursionError:
    return RawRow(place, None, "is not JSON (nested too deeply)")
  except ValueError as error:
    return RawRow(place, None, f"is not JSON ({str(error).splitlines()[0][:120]})")


def _parquet(path) -> Iterator[RawRow]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise InputError("parquet files need pyarrow: pip install 'qempo-jax[data]'") from error
  number = 0
  try:
    with path.open("rb") as plain:
      file = pyarrow.BufferReader(gzip.decompress(plain.read())) if path.suffix == ".gz" else plain
      opened = pyarrow.parquet.ParquetFile(file)
      names = opened.schema_arrow.names
      if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"data file {path} has two columns named {twice[:40]!r}; rename or remove one")
      for batch in opened.iter_batches(batch_size=256):
        for index in range(batch.num_rows):
          number += 1
          yield _parquet_row(f"{path}, row {number}", batch, index)
  except pyarrow.ArrowInvalid as error:
    raise InputError(f"data file {path} cannot be read ({str(error).splitlines()[0]})") from error


def _parquet_row(where, batch, index) -> RawRow:
  try:
    entry = {name: plain(_python(batch.column(place)[index])) for place, name in enumerate(batch.schema.names)}
    # A field that only other rows have is null here, and no field.
    return RawRow(where, {name: value for name, value in entry.items() if value is not None}, "")
  except UnicodeDecodeError as error:
    return RawRow(where, None, f"is not UTF-8 (byte {error.start})")


def _python(scalar) -> Any:
  """An Arrow value in Python; times that Python has no type for (nanoseconds, far dates, durations) as text or number."""
  try:
    return scalar.as_py()
  except (ValueError, OverflowError) as error:
    if isinstance(error, UnicodeDecodeError):
      raise
  try:
    return _as_text(scalar)
  except (ValueError, OverflowError, NotImplementedError, TypeError):
    return getattr(scalar, "value", None) if isinstance(getattr(scalar, "value", None), int) else repr(scalar)[:200]


def plain(value: Any) -> Any:
  """A value of Arrow, NumPy or TFDS as JSON has it: bytes as text, arrays as lists, messages as a list of objects.

  Raises:
    UnicodeDecodeError: bytes that are not UTF-8.
  """
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if hasattr(value, "tolist"):  # NumPy arrays and scalars
    return plain(value.tolist())
  if isinstance(value, dict):
    found = {str(key): plain(item) for key, item in value.items()}
    columns = list(found.values())
    is_messages = {"role", "content"} <= found.keys() or {"from", "value"} <= found.keys()
    if is_messages and all(isinstance(column, list) for column in columns):
      return [dict(zip(found, items)) for items in zip(*columns)]  # TFDS gives a list of objects as columns
    return found
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return value if isinstance(value, str | int | float | bool | None) else str(value)


def _remote(pattern):
  try:
    from etils import epath
  except ImportError as error:
    raise InputError(f"{pattern} needs etils: pip install 'qempo-jax[data]'") from error
  path = epath.Path(pattern)
  try:
    found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    found = [file for file in found if file.exists()]
  except Exception as error:  # Whatever the cloud's client raises, or that it is not installed.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"data file {pattern} cannot be read ({reason}); copy it here, or give this machine access"
    ) from error
  if not found:
    raise InputError(f"data file {pattern} cannot be read (there is no such file)")
  return found


def _as_text(scalar) -> str:
  """A value as Arrow prints it; nested ones have no cast to text."""
  import pyarrow

  try:
    return str(scalar.cast("string").as_py())
  except pyarrow.ArrowException:
    return pyarrow.array([scalar]).to_string()
