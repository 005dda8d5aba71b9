"""Compiled programs: kept in the user's cache folder between runs, and counted within one."""

import pathlib

import jax
from jax import monitoring

from qempo_jax.models import demo_model

_EVENT = "/jax/core/compile/backend_compile_duration"  # one for each program made ready, from the cache or anew


def keep(folder: pathlib.Path | None = None) -> None:
  """Keeps compiled programs that took a second or more, unless JAX was told where already.

  Args:
    folder: where; None for `programs` in the folder that keeps the demo model.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(folder or demo_model.cache_dir() / "programs"))


class Counter:
  """Counts the programs that this process makes ready; use as a context manager.

  with Counter() as compiled:
    step(state, batch)
    compiled.take()  # programs since the last call
  """

  def __init__(self):
    self._count = 0

  def __enter__(self):
    monitoring.register_event_duration_secs_listener(self._hear)
    return self

  def __exit__(self, *exception) -> None:
    monitoring.unregister_event_duration_listener(self._hear)

  def take(self) -> int:
    """Programs made ready since the last call."""
    count, self._count = self._count, 0
    return count

  def _hear(self, event: str, seconds: float, **kwargs) -> None:
    self._count += event == _EVENT
