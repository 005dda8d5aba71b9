"""The rows of every offline step: which pairs it visits, which of them share a row, and their packed tokens."""

from collections.abc import Sequence

import numpy as np

from experiments.plan import PairSettings
from qempo_jax.data import order
from qempo_jax.data import pair_tokens
from qempo_jax.types import PackedGroups


class PairRows:
  """The packed rows of every step, a function of (seed, step)."""

  def __init__(self, pairs: pair_tokens.PairTokens, settings: PairSettings, *, seed: int, bucket: int, max_length: int):
    """Takes sizes and lengths; packs nothing yet.

    Args:
      pairs: as token ids.
      settings: of training on pairs.
      seed: of the order.
      bucket: multiple to which rows are rounded up, tokens.
      max_length: of a response, tokens.
    """
    self._pairs, self._lengths, self._per_row = pairs, pairs.lengths(), settings.per_row
    self._pack = {"bucket": bucket, "max_length": max_length, "per_row": settings.per_row}
    self.order = order.Order(
      len(pairs.rows), batch_size=settings.per_step, seed=seed, lengths=self._lengths, window=settings.window
    )

  def __call__(self, step: int) -> tuple[PackedGroups, np.ndarray]:
    """The packed rows of a step, from 0, and the mask [P, G, T] of its response tokens."""
    return self.packed(self.indices(step))

  def indices(self, step: int) -> list[int]:
    """The pairs of a step, neighbours sharing rows."""
    return self.dealt(self.order.batch(step))

  def dealt(self, indices: Sequence[int]) -> list[int]:
    """Some pairs, put in order for rows of like length."""
    return pair_tokens.dealt(self._lengths, indices, self._per_row)

  def by_length(self, indices: Sequence[int]) -> list[int]:
    """Some pairs, shortest first."""
    return sorted(indices, key=lambda index: self._lengths[index])

  def packed(self, indices: Sequence[int]) -> tuple[PackedGroups, np.ndarray]:
    """The rows and the mask of some pairs, neighbours sharing rows."""
    return pair_tokens.pack_pairs(self._pairs, indices, **self._pack)
