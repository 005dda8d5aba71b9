"""Notice to stop: Ctrl-C, SIGTERM, the end of the terminal, or the platform's notice to any process of the run."""

from collections.abc import Callable
import os
import signal
import stat
import sys
import threading

import jax


class Notice:
  """Listens for the notice; use as a context manager, around a loop."""

  def __init__(self, grace_seconds: float, kept: Callable[[], str], note: Callable[[str], None] = print):
    """Listens from `__enter__` on.

    Args:
      grace_seconds: time this process may live after SIGTERM, after which it exits with 0 at any point of its work; 0
        sets no limit.
      kept: says what stands if the process ends now.
      note: told that the step in progress is finished first.
    """
    self._grace, self._kept, self._note = grace_seconds, kept, note
    self._signal, self._timer, self._before = None, None, {}

  def __enter__(self):
    # Of several processes each must stop after the same step; JAX's own service listens to the signal and agrees on it.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      reactions = {
        signal.SIGTERM: self._terminated,
        signal.SIGINT: self._interrupted,
        signal.SIGHUP: self._hung_up,
      }
      for number, react in reactions.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # a background job ignores Ctrl-C, and nohup SIGHUP
          self._before[number] = signal.signal(number, react)
    return self

  def __exit__(self, *exception) -> None:
    if self._timer:
      self._timer.cancel()
    for number, before in self._before.items():
      signal.signal(number, before)
    self._before = {}

  @property
  def exit_code(self) -> int:
    """130 after Ctrl-C and 129 after the end of the terminal, as a shell expects, else 0."""
    return 128 + self._signal if self._signal in (signal.SIGINT, signal.SIGHUP) else 0

  def came(self, step: int) -> bool:
    """True where the run must stop after this step; every process must ask after every step."""
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self._signal is not None

  def _interrupted(self, *_) -> None:
    if self._signal == signal.SIGINT:
      raise KeyboardInterrupt
    self._signal = signal.SIGINT
    self._note("finishing this step, then saving; Ctrl-C again stops at once")

  def _hung_up(self, *_) -> None:
    self._signal = signal.SIGHUP
    silence = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
      if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # a write to a terminal that is gone would raise
        os.dup2(silence, descriptor)
    os.close(silence)

  def _terminated(self, *_) -> None:
    self._signal = signal.SIGTERM
    if self._grace and self._timer is None:
      self._timer = threading.Timer(self._grace, self._give_up)
      self._timer.daemon = True
      self._timer.start()

  def _give_up(self) -> None:
    print(f"no checkpoint could be written within {self._grace:g} s of SIGTERM; {self._kept()}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)
