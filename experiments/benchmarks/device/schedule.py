"""Runs cases in subprocesses of their parts, in order, within a time limit; what fails says why, and the rest goes on.

A part's cases share one process, which starts anew after a case that crashed it or ran too long. A record is written
as soon as its case ends.
"""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any
from typing import NamedTuple

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
START_SECONDS = 20.0  # Time that a process needs before its first case.
GIB = 2**30


class Case(NamedTuple):
  """One measurement.

  Attributes:
    name: of the case within its part.
    settings: arguments of the measurement.
    needs: bytes of device memory, estimated; 0: little.
  """

  name: str
  settings: dict[str, Any]
  needs: int = 0


class Part(NamedTuple):
  """Cases that share a process.

  Attributes:
    name: of the part.
    kind: of measurement, a key of `worker.KINDS`.
    cases: in order of worth.
    seconds: most seconds of one case.
  """

  name: str
  kind: str
  cases: tuple[Case, ...]
  seconds: float


def run(
  parts: Sequence[Part],
  *,
  seconds: float,
  record: Callable[[dict[str, Any]], None],
  free_memory: Callable[[], int | None],
  command: Callable[[Part, Sequence[Case]], list[str]],
  environment: Callable[[], dict[str, str]] = lambda: dict(os.environ),
  start_seconds: float = START_SECONDS,
) -> None:
  """Runs all cases for which there are time and memory.

  Args:
    parts: in order of worth.
    seconds: limit of all together.
    record: called with each case's record: part, kind, case, settings, status, and result or reason.
    free_memory: bytes of the device that are free; None: unknown.
    command: (part, cases) -> the command line of a process that measures them.
    environment: variables of the next process.
    start_seconds: with less time than this left nothing is started.
  """
  deadline = time.monotonic() + seconds
  for part in parts:
    note = lambda case, status, part=part, **found: record(
      {"part": part.name, "kind": part.kind, "case": case.name, "settings": case.settings, "status": status, **found}
    )
    free, waiting = free_memory(), []
    for case in part.cases:
      if free is not None and case.needs > free:
        note(case, SKIPPED, reason=f"needs about {case.needs / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free")
      else:
        waiting.append(case)
    while waiting:
      left = deadline - time.monotonic()
      if left < start_seconds:
        for case in waiting:
          note(case, SKIPPED, reason=f"the limit of {seconds:g} s was used up")
        break
      waiting = _one_process(part, waiting, deadline, note, command(part, waiting), environment(), start_seconds)


def _one_process(part, waiting, deadline, note, command, environment, start_seconds) -> list[Case]:
  """Measures cases in one process; the cases that are left if it had to end early."""
  process = subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    encoding="utf-8",
    errors="replace",
    env=environment,
    start_new_session=True,
  )
  lines, errors = queue.Queue(), []
  threads = [
    threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
    threading.Thread(target=_keep_last, args=(process.stderr, errors), daemon=True),
  ]
  for thread in threads:
    thread.start()
  waiting, allowance = list(waiting), part.seconds + start_seconds
  try:
    while waiting:
      case = waiting[0]
      patience = min(allowance, deadline - time.monotonic())
      try:
        line = lines.get(timeout=max(patience, 0.0))
      except queue.Empty:
        whole = time.monotonic() >= deadline
        limit = "the time of the whole run ended" if whole else f"no result after its limit of {part.seconds:g} s"
        note(case, FAILED, reason=limit)
        return waiting[1:]
      if line is None:
        process.wait()
        threads[1].join(timeout=5)
        note(case, FAILED, reason=_ending(process.returncode, errors))
        return waiting[1:]
      found = _parsed(line)
      if found is None:
        continue
      note(case, found.pop("status"), **found)
      waiting, allowance = waiting[1:], part.seconds
    return []
  finally:
    _end(process)


def _read(stream, put) -> None:
  for line in stream:
    put(line)
  put(None)


def _keep_last(stream, kept: list[str]) -> None:
  """The last lines of a stream, read so that the process never waits for a reader."""
  for line in stream:
    if line.strip():
      kept.append(line.strip())
      del kept[:-5]


def _parsed(line: str) -> dict[str, Any] | None:
  try:
    found = json.loads(line)
  except ValueError:
    return None
  return found if isinstance(found, dict) and "status" in found else None


def _ending(code: int, errors: list[str]) -> str:
  how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
  return f"the process ended with {how}" + (f": {errors[-1][:300]}" if errors else "")


def _end(process: subprocess.Popen) -> None:
  """Ends the process with all that it started."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()
  for stream in (process.stdout, process.stderr):
    stream.close()


def worker_command(part: Part, cases: Sequence[Case]) -> list[str]:
  """The command line of `worker`."""
  told = {"kind": part.kind, "cases": [case.settings for case in cases]}
  return [sys.executable, "-m", "experiments.benchmarks.device.worker", json.dumps(told)]
