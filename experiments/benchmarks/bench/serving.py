"""The worker's half of the protocol: get ready, then one timed step for each line `step` on standard input.

Only the standard library is imported, since peers run in environments without this package's dependencies. Libraries'
output goes to standard error; standard output carries one JSON object per line.
"""

from collections.abc import Callable
import json
import os
import pathlib
import sys
import time

STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class Channel:
  """The worker's channel to the benchmark.

  A side whose step is a function uses `serve`. A trainer with its own loop calls `wait` at the start of a step and `done`
  at its end.
  """

  def __init__(self):
    """Takes standard output for the protocol."""
    self._out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    self._born, self._started = time.perf_counter(), None

  def wait(self) -> None:
    """Returns when a step is requested; ends the process at the end of input."""
    if self._started is None:
      self._send({"ready": True, "seconds": time.perf_counter() - self._born, "resident_bytes": _status("VmRSS")})
    if sys.stdin.readline().strip() != "step":
      os._exit(0)  # skips the libraries' slow clean-up; nothing is to be kept
    forget_peak()
    self._started = time.perf_counter()

  def done(self, **figures) -> None:
    """Reports a step: its seconds, its peak of resident memory, and the given figures."""
    seconds = time.perf_counter() - self._started
    self._send({"seconds": seconds, "peak_bytes": peak_bytes(), **figures})

  def _send(self, message: dict) -> None:
    self._out.write(json.dumps(message) + "\n")
    self._out.flush()


def serve(prepare: Callable[[dict], Callable[[], dict]]) -> None:
  """Runs a side whose step is a function: `prepare(spec)` returns it, and it returns figures once all is computed."""
  channel = Channel()
  step = prepare(spec())
  while True:
    channel.wait()
    channel.done(**step())


def spec() -> dict:
  """Returns this worker's settings: the JSON object in its one argument."""
  return json.loads(sys.argv[1])


def peak_bytes() -> int:
  """Peak of resident memory since `forget_peak`, or since the process's start if the system cannot reset it."""
  if found := _status("VmHWM"):
    return found
  import resource

  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
  """Resets the peak, if the system can."""
  try:
    CLEAR.write_text("5")
  except OSError:
    pass


def _status(name: str) -> int:
  """A size of this process in bytes; 0 if the system does not report it."""
  try:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
  except (OSError, StopIteration):
    return 0
