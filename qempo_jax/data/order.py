"""Which rows a step visits, on which host, and with which random numbers: all a function of the seed and the place.

Nothing is drawn in sequence, so a run that resumes at any step, on any number of hosts, sees the same batches as one
that never stopped.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from qempo_jax.errors import InputError


class Order:
  """The rows of every step: each row once an epoch, in an order of its own for every epoch.

  Position p = step * batch_size + offset stands in epoch p // num_rows; within an epoch rows follow a permutation
  drawn from (seed, epoch). With `lengths`, rows of like length meet in a batch: windows of `window` batches are sorted
  by length, and the batches within each window are put in random order again. That bounds padding, and leaves the
  order random between windows.
  """

  def __init__(
    self, num_rows: int, *, batch_size: int, seed: int, lengths: Sequence[int] | None = None, window: int = 0
  ):
    """Describes an order.

    Args:
      num_rows: rows there are.
      batch_size: rows a step, over all hosts.
      seed: of the order.
      lengths: tokens of every row; None, or a window below 2, leaves the permutation as it is.
      window: batches that are sorted together.
    """
    if num_rows < 1 or batch_size < 1:
      raise InputError(f"there is no order of {num_rows} rows in batches of {batch_size}; both must be positive")
    self._num_rows, self._batch_size, self._seed, self._window = num_rows, batch_size, seed, window
    self._lengths = None if lengths is None or window < 2 else np.asarray(lengths)
    self._epochs = {}

  def batch(self, step: int) -> list[int]:
    """The rows of a step, from 0."""
    return [self._at(place) for place in range(step * self._batch_size, (step + 1) * self._batch_size)]

  def host_batch(self, step: int, *, host: int, hosts: int) -> list[int]:
    """A host's part of a step: hosts 0, 1, ... one after the other hold the whole batch.

    Raises:
      InputError: the batch can't be split evenly.
    """
    if self._batch_size % hosts:
      raise InputError(f"{self._batch_size} rows a step cannot be split over {hosts} hosts; take a multiple of {hosts}")
    part = self._batch_size // hosts
    return self.batch(step)[host * part : (host + 1) * part]

  def state(self, step: int) -> dict[str, Any]:
    """What a checkpoint keeps after `step` steps; nothing in it depends on the hosts."""
    return self._identity() | {"position": step * self._batch_size}

  def resume(self, state: dict[str, Any]) -> int:
    """The next step of a run that stopped in this state.

    Raises:
      InputError: the state is of another order; names what differs.
    """
    here = self._identity()
    differing = [f"{key} was {state.get(key)} and is {value}" for key, value in here.items() if state.get(key) != value]
    if differing:
      raise InputError(f"the data's order is not the checkpoint's: {', '.join(differing)}; restore it, or start anew")
    return state["position"] // self._batch_size

  def _identity(self):
    identity = {"seed": self._seed, "num_rows": self._num_rows, "batch_size": self._batch_size}
    return identity | {"window": self._window if self._lengths is not None else 0}

  def _at(self, place: int) -> int:
    epoch, offset = divmod(place, self._num_rows)
    if epoch not in self._epochs:
      # A batch may lie across two epochs; older ones are not asked for again.
      self._epochs = {kept: rows for kept, rows in self._epochs.items() if kept == epoch - 1}
      self._epochs[epoch] = self._epoch(epoch)
    return int(self._epochs[epoch][offset])

  def _epoch(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([self._seed, epoch])
    rows = rng.permutation(self._num_rows)
    if self._lengths is None:
      return rows
    # Batches begin where the epoch before left off, so that those of an epoch are whole but for its two ends.
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


def sample_keys(key: jax.Array, *, step: int, prompts: jax.Array, group_size: int) -> jax.Array:
  """Random keys of samples, folded from (step, prompt, sample): the same wherever a sample is drawn.

  Args:
    key: of the run.
    step: from 0.
    prompts: [P] the prompts' rows.
    group_size: samples a prompt, G.

  Returns:
    [P, G] keys, all different.
  """
  at_step = jax.random.fold_in(key, step)
  of_prompt = jax.vmap(lambda prompt: jax.random.fold_in(at_step, prompt))(prompts)
  samples = jax.numpy.arange(group_size)
  return jax.vmap(lambda one: jax.vmap(lambda sample: jax.random.fold_in(one, sample))(samples))(of_prompt)
