"""`metrics.jsonl` and TensorBoard events: the record of a run's steps."""

import contextlib
import os
import pathlib

import tensorboardX

from experiments.run import distributed
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from qempo_jax.errors import InputError


class MetricsLog:
  """`metrics.jsonl`, one JSON object a step, and the same as TensorBoard events beside it."""

  def __init__(self, path: pathlib.Path, *, keep: int):
    """Keeps the first `keep` steps of an earlier run, and drops later ones; to be called once their state is restored."""
    self._path, self._board = path, None
    if not distributed.is_writer():
      return
    found = metrics_file.read(path, note=lambda line: None)  # `Saver.restore` says what is damaged
    kept = "".join(metrics_file.line(row) for row in found if row["step"] <= keep)
    if path.exists() and path.read_bytes() != kept.encode():
      workdirs.write_atomically(path, kept)
    board = str(path.parent / "tensorboard")
    self._board = tensorboardX.SummaryWriter(board, write_to_disk=True, purge_step=keep + 1 if found else None)

  def write(self, metrics) -> None:
    """Appends one step, on the first process alone."""
    if self._board is None:
      return
    try:
      with open(self._path, "a", encoding="utf-8") as file:
        file.write(metrics_file.line(metrics))
    except OSError as error:
      raise InputError(
        f"{self._path} cannot be written ({error.strerror}); the last checkpoint stands: free space there, then start"
        " the same command again"
      ) from error
    for name, value in metrics.items():
      if value is not None:
        self._board.add_scalar(name, value, metrics["step"])

  def sync(self) -> None:
    """Returns once all rows are on the disk itself."""
    if self._board is not None and self._path.exists():
      with open(self._path, "rb") as file:
        os.fsync(file.fileno())

  def close(self) -> None:
    """Writes out the events; a disk that is full then costs TensorBoard's curves, of which metrics.jsonl has every row."""
    with contextlib.suppress(OSError):
      if self._board is not None:
        self._board.close()
