"""A long computation's batches, each on disk before the next is made, so that what is cut short goes on after the last one."""

from collections.abc import Iterator
import json
import pathlib
from typing import Any

from experiments.run import distributed
from experiments.run import workdir as workdirs


class Parts:
  """JSON-able records in a file, which only the same computation goes on with. Its folder is in a workdir.

  Attributes:
    records: those that are there, of this call and of earlier ones.
  """

  def __init__(self, path: pathlib.Path, same: Any):
    """Reads the file, and starts it anew unless its first line is `same`, all that the records depend on."""
    self._path, first = path, json.dumps(same)
    there = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # The last line may be half one.
    lines = there[1:] if there[:1] == [first] else []
    self.records = [json.loads(line) for line in lines]
    if distributed.is_writer():
      workdirs.write(path, "".join(f"{line}\n" for line in [first, *lines]))

  def extend(self, more: Iterator[Any]) -> Iterator[Any]:
    """Yields each further record once it is on disk."""
    for record in more:
      self.records.append(record)
      if distributed.is_writer():
        workdirs.check_in_place(self._path)
        with self._path.open("a", encoding="utf-8") as file:
          file.write(json.dumps(record) + "\n")
      yield record

  def remove(self) -> None:
    """Removes the file, once the whole result is written."""
    if distributed.is_writer():
      self._path.unlink()
