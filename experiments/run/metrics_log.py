"""`metrics.jsonl` and TensorBoard events: the record of a run's steps."""

from collections.abc import Callable
import contextlib
import os
import pathlib
import sys
import time

from experiments.run import distributed
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from qempo_jax.errors import InputError

# tensorboardX imports PyTorch where it is installed, which is half of a program's start.
if _HIDES_TORCH := "torch" not in sys.modules:
  sys.modules["torch"] = None
from tensorboardX import event_file_writer  # noqa: E402
from tensorboardX.proto.event_pb2 import Event  # noqa: E402
from tensorboardX.proto.event_pb2 import SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402

if _HIDES_TORCH:
  del sys.modules["torch"]

_FLUSH_SECONDS = 120.0


class MetricsLog:
  """`metrics.jsonl`, one JSON object a step, and the same as TensorBoard events beside it.

  An event that cannot be written ends the events, and `note` is told: `metrics.jsonl` has every row. This thread writes them:
  tensorboardX's SummaryWriter has its own, and waits for ever once that one met a full disk.
  """

  def __init__(self, path: pathlib.Path, *, keep: int, note: Callable[[str], None] = print):
    """Keeps the first `keep` steps of an earlier run, and drops later ones; to be called once their state is restored."""
    self._path, self._note, self._events, self._flushed = path, note, None, time.monotonic()
    if not distributed.is_writer():
      return
    found = metrics_file.read(path, note=lambda line: None)  # `Saver.restore` says what is damaged
    kept = "".join(metrics_file.line(row) for row in found if row["step"] <= keep)
    if path.exists() and path.read_bytes() != kept.encode():
      workdirs.write(path, kept)
    folder = path.parent / "tensorboard"
    with self._sparing_events():
      folder.mkdir(parents=True, exist_ok=True)
      self._events = event_file_writer.EventsWriter(str(folder / "events"))
      if found:  # TensorBoard hides what an earlier life wrote from here on.
        self._events.write_event(Event(step=keep + 1, file_version="brain.Event:2"))
        self._events.write_event(Event(step=keep + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, metrics) -> None:
    """Appends one step, on the first process alone."""
    if not distributed.is_writer():
      return
    with self._writing(), open(self._path, "a", encoding="utf-8") as file:
      file.write(metrics_file.line(metrics))
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items() if value is not None]
    with self._sparing_events():
      if self._events is not None:
        self._events.write_event(Event(wall_time=time.time(), step=metrics["step"], summary=Summary(value=values)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
          self._flushed = time.monotonic()
          self._events.flush()

  @contextlib.contextmanager
  def _writing(self):
    workdirs.check_in_place(self._path)
    try:
      yield
    except OSError as error:
      remedy = "the last checkpoint stands: free space there, then start the same command again"
      if not self._path.parent.is_dir():
        remedy = (
          "its folder was moved or removed under the run: put it back, or the same command goes on from a checkpoint"
          " elsewhere, or starts at step 1"
        )
      raise InputError(f"{self._path} cannot be written ({error.strerror}); {remedy}") from error

  @contextlib.contextmanager
  def _sparing_events(self):
    try:
      yield
    except OSError as error:
      self._events = None
      self._note(
        f"{self._path.parent / 'tensorboard'} cannot be written ({error.strerror}): no more TensorBoard events in this"
        f" run; {self._path.name} has every row"
      )

  def sync(self) -> None:
    """Returns once all rows are on the disk itself."""
    if distributed.is_writer() and self._path.exists():
      with self._writing(), open(self._path, "rb") as file:
        os.fsync(file.fileno())

  def close(self) -> None:
    """Writes out the events."""
    with self._sparing_events():
      if self._events is not None:
        self._events.close()
