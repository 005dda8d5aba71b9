"""Batches made ahead of the step, in threads, by grain; their order stays a function of the step."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from qempo_jax.errors import InputError


class _Steps:
  """The steps of a run as grain's random access source: item i is the batch of step i."""

  def __init__(self, make_batch, steps):
    self._make_batch, self._steps = make_batch, steps

  def __len__(self):
    return self._steps

  def __getitem__(self, step):
    return self._make_batch(step)


class Prefetched(Iterator):
  """Iterates over the batches of steps, some of them ready before they are asked for.

  `make_batch` must be a function of the step alone, and free of other threads' harm. Then the state, which is the
  next step, restores exactly what is left.
  """

  def __init__(self, make_batch: Callable[[int], Any], *, steps: int, ahead: int = 4, threads: int = 1):
    """Prepares to iterate over the batches of steps 0, 1, ..., steps - 1."""
    try:
      import grain
    except ImportError as error:
      raise InputError("batches ahead of the step need grain: pip install 'qempo-jax[data]'") from error
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    self._iterator = iter(grain.MapDataset.source(_Steps(make_batch, steps)).to_iter_dataset(options))

  def __next__(self) -> Any:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """What a checkpoint keeps."""
    return self._iterator.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from a state."""
    self._iterator.set_state(state)
