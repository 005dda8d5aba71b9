"""Killable worker processes: each item has a time-out and a memory limit, and cannot affect other items.

Every worker is a new interpreter (no state of this process, no environment but a few paths) that runs
`math_worker.py` and holds one item at a time. An item that takes too long, or crashes, costs its process, which is
restarted. No signals are used here, so any thread may call. POSIX only.
"""

import atexit
from collections.abc import Sequence
import json
import os
import pathlib
import queue
import selectors
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from qempo_jax.errors import InputError

_PROGRAM = pathlib.Path(__file__).with_name("math_worker.py")
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "VIRTUAL_ENV")
_START_SECONDS = 120.0
_TRIES = 3  # Attempts to start a worker.


class Verdict(NamedTuple):
  """Verdict of a worker.

  Attributes:
    right: True if the answer is the reference; None if unknown.
    found: True if anything could be read as an answer.
    failure: None, "timeout", "crash", or the worker's error.
  """

  right: bool | None
  found: bool = False
  failure: str | None = None


class WorkerPool:
  """Judges (reference, completion) pairs in worker processes; processes start at the first call."""

  def __init__(self, *, num_workers: int, timeout: float, memory_mb: int, program: str | os.PathLike = _PROGRAM):
    """Stores the settings; nothing is started yet.

    Args:
      num_workers: number of processes.
      timeout: seconds for each item.
      memory_mb: address space of each process, MiB.
      program: program of the processes.
    """
    if num_workers < 1 or timeout <= 0 or memory_mb < 1:
      raise InputError(f"num_workers={num_workers}, timeout={timeout} and memory_mb={memory_mb} must all be positive")
    alarm = max(1, round(timeout * 2 + 1))
    command = [sys.executable, "-P", "-X", "utf8", os.fspath(program), str(memory_mb), str(alarm)]
    self._workers = [_Worker(command, timeout) for _ in range(num_workers)]
    self._lock = threading.Lock()
    atexit.register(self.close)

  def judge(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Judges every item.

    Args:
      items: (reference, completion) pairs.

    Returns:
      One verdict an item, in their order.

    Raises:
      InputError: a worker process cannot be started.
    """
    if not items:
      return []
    with self._lock:
      waiting, verdicts, problems = queue.SimpleQueue(), [None] * len(items), []
      for index in range(len(items)):
        waiting.put(index)

      def serve(worker):
        try:
          while not problems:
            index = waiting.get_nowait()
            verdicts[index] = worker.judge(items[index])
        except queue.Empty:
          pass
        except BaseException as error:  # It belongs to the caller, not to this thread.
          problems.append(error)

      threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in self._workers[: len(items)]]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
      if problems:
        raise problems[0]
      return verdicts

  def close(self) -> None:
    """Ends the processes; a later call restarts them."""
    for worker in self._workers:
      worker.stop()
    atexit.unregister(self.close)


class _Worker:
  """One process and its current item."""

  def __init__(self, command: Sequence[str], timeout: float):
    self._command, self._timeout = command, timeout
    self._process, self._rest = None, b""
    self.starts = 0

  def judge(self, item: tuple[str, str]) -> Verdict:
    if self._process is None or self._process.poll() is not None:
      self._start()
    try:
      self._process.stdin.write(json.dumps(list(item)).encode() + b"\n")
      self._process.stdin.flush()
      answer = self._read(self._timeout)
    except TimeoutError:
      self.stop()
      return Verdict(None, failure="timeout")
    except (OSError, EOFError):
      self.stop()
      return Verdict(None, failure="crash")
    if "failure" in answer:
      return Verdict(None, failure=answer["failure"])
    return Verdict(answer["right"], answer["found"])

  def stop(self) -> None:
    process, self._process, self._rest = self._process, None, b""
    if process is not None:
      process.kill()
      process.wait()
      for pipe in (process.stdin, process.stdout):
        try:
          pipe.close()
        except OSError:  # Input that it had not read yet.
          pass

  def _start(self) -> None:
    problem = "it ended at once"
    for _ in range(_TRIES):
      self.stop()
      self.starts += 1
      self._process = subprocess.Popen(
        self._command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"PYTHONHASHSEED": "0"},
      )
      try:
        answer = self._read(_START_SECONDS)
      except (TimeoutError, OSError, EOFError) as error:
        problem = f"{type(error).__name__} {error}".strip()
        continue
      if "ready" in answer:
        return
      problem = answer.get("fatal", problem)
    self.stop()
    raise InputError(
      f"a worker for mathematical answers cannot start ({problem}): pip install 'qempo-jax[math]', or raise memory_mb"
    )

  def _read(self, seconds: float) -> dict:
    """The process's next JSON line; TimeoutError or EOFError if none comes."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:  # select.select refuses file descriptors above 1023.
      selector.register(self._process.stdout, selectors.EVENT_READ)
      while b"\n" not in self._rest:
        left = deadline - time.monotonic()
        if left <= 0 or not selector.select(left):
          raise TimeoutError(f"nothing in {seconds:g} s")
        piece = os.read(self._process.stdout.fileno(), 65536)
        if not piece:
          raise EOFError("its output ended")
        self._rest += piece
    line, _, self._rest = self._rest.partition(b"\n")
    return json.loads(line)
