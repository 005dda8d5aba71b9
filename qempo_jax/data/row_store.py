"""Rows on disk with random access, in an ArrayRecord data set of TensorFlow Datasets; TensorFlow is not needed.

A row is stored as JSON text, since TFDS features would turn messages into columns and texts into bytes. Broken rows are
stored too, so that a data set has as many rows as its files.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from qempo_jax.data import files
from qempo_jax.data.files import RawRow
from qempo_jax.errors import InputError
from qempo_jax.paths import expand_path

# Part of a stored data set's name; raise it when the stored format changes, so that old data sets are not read.
VERSION = "1.0.0"
_ROWS_A_SHARD = 1_000_000
_ROWS_A_WRITE = 4096
_ROWS_A_READ = 256


class RowStore(Sequence):
  """Sequence of the rows of a TFDS data set, each read on access."""

  def __init__(self, data_source: Any, name: str):
    """Wraps the result of TFDS's `as_data_source`; `name` appears in messages."""
    self._source, self._name = data_source, name

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.many(range(*index.indices(len(self))))
    return self.many([range(len(self))[index]])[0]

  def __iter__(self) -> Iterator[RawRow]:
    """Yields all rows, read many at once: a read of one row takes ten times as long."""
    for start in range(0, len(self), _ROWS_A_READ):
      yield from self.many(range(start, min(start + _ROWS_A_READ, len(self))))

  def many(self, indices: Sequence[int]) -> list[RawRow]:
    """Returns the rows at several indices, in one read."""
    indices = list(indices)
    examples = self._source.__getitems__(indices) if indices else []
    return [self._row(index, example) for index, example in zip(indices, examples)]

  def _row(self, index, example) -> RawRow:
    place = f"{self._name}, row {index + 1}"
    if set(example) == {"json", "place", "error"}:  # written by `write`
      place, error = example["place"].decode("utf-8"), example["error"].decode("utf-8")
      return RawRow(place, None if error else json.loads(example["json"]), error)
    try:
      return RawRow(place, files.plain(example), "")
    except UnicodeDecodeError as error:
      return RawRow(place, None, f"is not UTF-8 (byte {error.start})")


def tfds() -> Any:
  """Imports TensorFlow Datasets, which works without TensorFlow for these calls."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise InputError("this data source needs tensorflow-datasets: pip install 'qempo-jax[data]'") from error
  return tensorflow_datasets


def open_folder(folder: str | os.PathLike[str], split: str) -> RowStore:
  """Opens a prepared data set by the folder that holds its dataset_info.json.

  Raises:
    InputError: there is no data set, it is damaged, or it has no split of that name.
  """
  library, path = tfds(), expand_path(folder)
  if not (path / "dataset_info.json").is_file():
    raise InputError(
      f"{path} holds no dataset_info.json; name the folder of a prepared TFDS data set, with its version"
    )
  with reading(str(path)):
    builder = library.builder_from_directory(str(path))
    return from_builder(builder, split, str(path))


def from_builder(builder: Any, split: str, name: str) -> RowStore:
  """Opens one split of a TFDS builder."""
  base = split.partition("[")[0]
  if base not in builder.info.splits:
    raise InputError(f"{name} has no split {base!r}; it has {', '.join(builder.info.splits)}")
  return RowStore(builder.as_data_source(split), f"{name}:{split}")


@contextlib.contextmanager
def reading(name: str):
  """Turns any error of TFDS about a damaged or foreign data set into an InputError of one line."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # TFDS wraps errors of files, protos and readers of many kinds.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    raise InputError(f"the data set {name} cannot be read ({reason})") from error


def write(rows: Iterable[RawRow], folder: pathlib.Path) -> None:
  """Writes rows as a data set with the one split `train`, atomically.

  Args:
    rows: in order.
    folder: the data set's final folder; an existing data set is kept.

  Raises:
    InputError: the folder cannot be written.
  """
  library = tfds()
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
  except OSError as error:
    raise InputError(f"{folder.parent} cannot be written ({error.strerror}); set QEMPO_CACHE_DIR") from error
  try:
    _write_tfds(library, rows, scratch)
    with contextlib.suppress(FileExistsError):
      try:
        os.replace(scratch, folder)
      except OSError:
        if not (folder / "dataset_info.json").is_file():  # Otherwise another process wrote the same rows first.
          raise
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _write_tfds(library, rows, folder):
  from tensorflow_datasets.core import dataset_info
  from tensorflow_datasets.core.sequential_writer import SequentialWriter

  text = library.features.Text
  features = library.features.FeaturesDict({"json": text(), "place": text(), "error": text()})
  identity = dataset_info.DatasetIdentity(
    name="rows", version=library.core.Version(VERSION), data_dir=str(folder), module_name=__name__
  )
  info = dataset_info.DatasetInfo(builder=identity, features=features)
  writer = SequentialWriter(info, max_examples_per_shard=_ROWS_A_SHARD, file_format="array_record")
  writer.initialize_splits(["train"])
  waiting = []
  for row in rows:
    waiting.append({"json": json.dumps(row.entry), "place": row.place, "error": row.error})
    if len(waiting) == _ROWS_A_WRITE:
      writer.add_examples({"train": waiting})
      waiting = []
  writer.add_examples({"train": waiting})
  writer.close_all()
