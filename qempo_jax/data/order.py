"""Order of the rows in training, as a pure function of the seed and the step.

No random state is carried between steps, so a resumed run sees the same batches as an uninterrupted one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qempo_jax.errors import InputError


class Order:
  """Assigns rows to steps: each row once an epoch, in a new order every epoch.

  Position p = step * batch_size + offset lies in epoch p // num_rows. The rows of an epoch follow a permutation drawn
  from (seed, epoch). With `lengths`, batches hold rows of similar length: windows of `window` batches are sorted by
  length, and the batches within each window are shuffled. Sorting bounds padding and leaves the order random between
  windows.
  """

  def __init__(
    self, num_rows: int, *, batch_size: int, seed: int, lengths: Sequence[int] | None = None, window: int = 0
  ):
    """Describes an order.

    Args:
      num_rows: number of rows.
      batch_size: rows per step, over all hosts.
      seed: seed of the permutations.
      lengths: tokens of every row; None, or a window below 2, keeps the plain permutation.
      window: number of batches that are sorted together.
    """
    if num_rows < 1 or batch_size < 1:
      raise InputError(f"there is no order of {num_rows} rows in batches of {batch_size}; both must be positive")
    self._num_rows, self._batch_size, self._seed, self._window = num_rows, batch_size, seed, window
    self._lengths = None if lengths is None or window < 2 else np.asarray(lengths)
    self._epochs = {}

  def batch(self, step: int) -> list[int]:
    """Returns the row indices of a step, counted from 0."""
    return [self._row(position) for position in range(step * self._batch_size, (step + 1) * self._batch_size)]

  def state(self, step: int) -> dict[str, Any]:
    """Returns the data state of a checkpoint after `step` steps; it does not depend on the number of hosts."""
    return self._identity() | {"position": step * self._batch_size}

  def resume(self, state: dict[str, Any]) -> int:
    """Returns the next step of a run that stopped in this state.

    Raises:
      InputError: the state is of another order; names the settings that differ.
    """
    identity = self._identity()
    differing = [
      f"{key} was {state.get(key)} and is {value}" for key, value in identity.items() if state.get(key) != value
    ]
    if differing:
      raise InputError(f"the data's order is not the checkpoint's: {', '.join(differing)}; restore it, or start anew")
    return state["position"] // self._batch_size

  def _identity(self):
    identity = {"seed": self._seed, "num_rows": self._num_rows, "batch_size": self._batch_size}
    return identity | {"window": self._window if self._lengths is not None else 0}

  def _row(self, position: int) -> int:
    epoch, offset = divmod(position, self._num_rows)
    if epoch not in self._epochs:
      # A batch may span two epochs, so the previous permutation is kept too.
      self._epochs = {kept: rows for kept, rows in self._epochs.items() if kept == epoch - 1}
      self._epochs[epoch] = self._epoch(epoch)
    return int(self._epochs[epoch][offset])

  def _epoch(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([self._seed, epoch])
    rows = rng.permutation(self._num_rows)
    if self._lengths is None:
      return rows
    # Batches continue across epochs, so the first and last rows of an epoch may share a batch with its neighbours.
    size = self._batch_size
    first = -(epoch * self._num_rows) % size
    middle = rows[first : first + (self._num_rows - first) // size * size]
    batches = middle.reshape(-1, size)
    for start in range(0, len(batches), self._window):
      window = batches[start : start + self._window]
      flat = window.reshape(-1)
      flat = flat[np.argsort(self._lengths[flat], kind="stable")].reshape(window.shape)
      batches[start : start + self._window] = flat[rng.permutation(len(window))]
    return np.concatenate([rows[:first], batches.reshape(-1), rows[first + middle.size :]])
