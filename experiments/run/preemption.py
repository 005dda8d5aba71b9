"""Notice that this machine is about to be taken away: SIGTERM, or what the platform told any process of the run."""

import os
import signal
import sys
import threading

import jax


class Notice:
  """Listens for the notice; use as a context manager, around a loop."""

  def __init__(self, grace_seconds: float):
    """Listens from `__enter__` on.

    Args:
      grace_seconds: how long after SIGTERM this process may live; 0 for as long as it likes. Then it exits with 0
        whatever it does, since the last checkpoint stands.
    """
    self._grace, self._came, self._timer, self._before = grace_seconds, False, None, None

  def __enter__(self):
    # Of several processes each must stop after the same step; JAX's own service listens to the signal and agrees on it.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._signalled)
    return self

  def __exit__(self, *exception) -> None:
    if self._timer:
      self._timer.cancel()
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      self._before = None

  def came(self, step: int) -> bool:
    """Whether to stop after this step; every process of a run must ask after every step."""
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self._came

  def _signalled(self, *_) -> None:
    self._came = True
    if self._grace and self._timer is None:
      self._timer = threading.Timer(self._grace, self._give_up)
      self._timer.daemon = True
      self._timer.start()

  def _give_up(self) -> None:
    print(f"no checkpoint could be written within {self._grace:g} s of SIGTERM; the last one stands", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)
