"""Rows of local JSON Lines and parquet files, each with its file and row number for messages.

A broken row is yielded with its error, so that the caller decides whether to stop.
"""

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
from qempo_jax.paths import expand_path

SUFFIXES = {"jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet", ".pq")}


class RawRow(NamedTuple):
  """One row of a file, parsed if possible.

  Attributes:
    place: file and row number, for messages.
    entry: the parsed object; None for a broken row.
    error: the fault of a broken row, as the continuation of `place`; empty for a valid row.
  """

  place: str
  entry: Any
  error: str


def matching(pattern: str) -> list[pathlib.Path]:
  """Lists the files that a path or glob names, sorted by name; bucket addresses (gs://) need etils and cloud access.

  Raises:
    InputError: no file matches.
  """
  if "://" in pattern:
    return _remote(pattern)
  path = expand_path(pattern)
  if path.is_file():
    return [path]
  names = sorted(glob.glob(str(path), recursive=True))
  matches = [pathlib.Path(name) for name in names if pathlib.Path(name).is_file()]
  if not matches:
    hint = "it is a folder; name its files, such as PATH/*.jsonl" if path.is_dir() else "there is no such file"
    raise InputError(f"data file {pattern} cannot be read ({hint})")
  return matches


def content_hash(paths: Sequence[pathlib.Path]) -> str:
  """Returns the SHA-256 over the paths, which appear in messages, and the bytes of files, in order."""
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
  """Yields every row of the files, broken ones included; blank lines are skipped.

  Args:
    paths: the files.
    kind: "jsonl" or "parquet"; a name that ends in .gz is decompressed.

  Raises:
    InputError: a file as a whole cannot be read.
  """
  for path in paths:
    try:
      yield from (_parquet if kind == "parquet" else _json_lines)(path)
    except (OSError, EOFError, zlib.error) as error:
      raise InputError(f"data file {path} cannot be read ({error})") from error


def parse(line: str) -> Any:
  """Parses JSON strictly: repeated keys and numbers outside JSON (NaN, Infinity) are refused.

  Raises:
    ValueError: the text is not strict JSON.
    RecursionError: the text is nested too deeply.
  """
  return json.loads(line, object_pairs_hook=_object, parse_constant=_constant)


def _object(pairs):
  entry = dict(pairs)
  if len(entry) != len(pairs):
    names = [key for key, _ in pairs]
    repeated = next(key for key in names if names.count(key) > 1)
    raise ValueError(f"the key {repeated[:40]!r} appears twice")
  return entry


def _constant(name):
  raise ValueError(f"{name} is not a JSON number")


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
      if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"data file {path} has two columns named {repeated[:40]!r}; rename or remove one")
      for batch in opened.iter_batches(batch_size=256):
        for index in range(batch.num_rows):
          number += 1
          yield _parquet_row(f"{path}, row {number}", batch, index)
  except pyarrow.ArrowInvalid as error:
    raise InputError(f"data file {path} cannot be read ({str(error).splitlines()[0]})") from error


def _parquet_row(place, batch, index) -> RawRow:
  try:
    entry = {name: plain(_python(batch.column(name)[index])) for name in batch.schema.names}
    # Parquet stores a field that only other rows have as null; drop it.
    return RawRow(place, {name: value for name, value in entry.items() if value is not None}, "")
  except UnicodeDecodeError as error:
    return RawRow(place, None, f"is not UTF-8 (byte {error.start})")


def _python(scalar) -> Any:
  """Converts an Arrow value to Python; times without a Python type (nanoseconds, far dates, durations) become text or int."""
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
  """Converts a value of Arrow, NumPy or TFDS to JSON types: bytes to text, arrays to lists, columns of messages to a list.

  Raises:
    UnicodeDecodeError: bytes are not UTF-8.
  """
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if hasattr(value, "tolist"):  # NumPy arrays and scalars
    return plain(value.tolist())
  if isinstance(value, dict):
    fields = {str(key): plain(item) for key, item in value.items()}
    columns = list(fields.values())
    is_messages = {"role", "content"} <= fields.keys() or {"from", "value"} <= fields.keys()
    if is_messages and all(isinstance(column, list) for column in columns):
      return [dict(zip(fields, items)) for items in zip(*columns)]  # TFDS stores a list of objects as columns
    return fields
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
    candidates = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    matches = [file for file in candidates if file.exists()]
  except Exception as error:  # Cloud clients raise many types, as does their absence.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"data file {pattern} cannot be read ({reason}); copy it here, or give this machine access"
    ) from error
  if not matches:
    raise InputError(f"data file {pattern} cannot be read (there is no such file)")
  return matches


def _as_text(scalar) -> str:
  """Returns the text of a value as Arrow prints it; nested values have no cast to text."""
  import pyarrow

  try:
    return str(scalar.cast("string").as_py())
  except pyarrow.ArrowException:
    return pyarrow.array([scalar]).to_string()
