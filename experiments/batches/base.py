"""The interface between the training loop and a run's data: one object that draws batches and makes updates of them."""

from collections.abc import Callable
from collections.abc import Iterator
import pathlib
from typing import Any

import jax


class Batches:
  """The data of a run and the step that learns from it, as a context manager; this base holds the optional parts.

  Attributes:
    notes: lines for the user before the first step.
    same: hashes by name of what must not change under a run; known once prepared.
    order: of the data; known once prepared.
  """

  notes: list[str]
  same: dict[str, str]
  order: Any

  def prepare(self, workdir: pathlib.Path, note: Callable[[str], None]) -> None:
    """One-time set-up before the first step."""

  def compile(self, shardings) -> None:
    """Sets up the jitted steps for a state with these shardings; they are compiled at their first batches."""
    raise NotImplementedError

  def __call__(self, state, index: int) -> tuple[Any, dict[str, jax.Array], dict[str, float]]:
    """Update `index`, from 0: (the next state, metrics on the devices, metrics of the host)."""
    raise NotImplementedError

  def remarks(self, metrics: dict[str, float]) -> Iterator[str]:
    """Lines for the user about a step's metrics."""
    yield from ()

  def to_json(self) -> dict[str, Any]:
    """Host state that a checkpoint keeps beside the train state."""
    return {}

  def from_json(self, saved: dict[str, Any]) -> None:
    """Restores `to_json`."""

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    """Tears down the set-up of `__enter__`."""
