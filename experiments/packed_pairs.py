"""The rows of every offline step: which pairs it visits, which of them share a row, and their packed tokens."""

from collections.abc import Sequence

import jax
import numpy as np

from experiments import offline_builders
from qempo_jax.data import order
from qempo_jax.data import pair_tokens
from qempo_jax.types import PackedGroups


def limits(config) -> dict[str, int]:
  """The longest prompt and response that are trained on, in tokens, as `encode_pairs` takes them."""
  return {
    "max_prompt_length": config.data.max_prompt_length,
    "max_response_length": config.sampling.max_response_length,
  }


class PackedPairs:
  """What each step trains on, a function of (seed, step)."""

  def __init__(self, config, pairs: pair_tokens.PairTokens, mesh: jax.sharding.Mesh | None = None):
    """Takes sizes, seed and lengths; packs nothing yet.

    Raises:
      InputError: the pairs of a row do not divide what a device of the mesh gets.
    """
    self._config, self._pairs, self._lengths = config, pairs, pairs.lengths()
    self._per_row = offline_builders.pairs_per_row(config, mesh)
    self.order = order.Order(
      len(pairs.rows),
      batch_size=config.offline.pairs_per_step,
      seed=config.seed,
      lengths=self._lengths,
      window=config.data.length_window,
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
    config = self._config
    return pair_tokens.pack_pairs(
      self._pairs,
      indices,
      bucket=config.compute.bucket,
      max_length=config.sampling.max_response_length,
      per_row=self._per_row,
    )
