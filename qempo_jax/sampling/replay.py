"""Replay buffer of good responses, so that an answer that sampling misses is not forgotten."""

from collections.abc import Collection
from collections.abc import Sequence
import json
from typing import Any

import numpy as np


class ReplayBuffer:
  """Distinct responses with their rewards, by a JSON-able key, such as the prompt or a column's value.

  Trajectory balance needs no importance weights, so a response of an earlier policy trains as well as an on-policy one.
  It never counts in measurements.
  """

  def __init__(self, min_reward: float, forbidden: Collection[int] = ()):
    """Keeps responses with a reward of at least `min_reward` and without ids of `forbidden`.

    Args:
      min_reward: least reward to keep.
      forbidden: ids that the policy never samples, `ModelConfig.forbidden`; an older checkpoint may contain them.
    """
    self.min_reward, self._forbidden = min_reward, frozenset(forbidden)
    self._rewards: dict[str, dict[tuple[int, ...], float]] = {}

  def add(self, key: Any, response: Sequence[int], reward: float) -> None:
    """Stores a response of token ids, EOS included, if its reward is high enough."""
    if reward >= self.min_reward and self._forbidden.isdisjoint(map(int, response)):
      self._rewards.setdefault(_name(key), {})[tuple(int(token) for token in response)] = float(reward)

  def draw(self, key: Any, count: int, rng: np.random.Generator):
    """Draws up to `count` distinct (response, reward) pairs of a key, uniformly."""
    pairs = list(self._rewards.get(_name(key), {}).items())
    if len(pairs) <= count:
      return pairs
    return [pairs[index] for index in rng.choice(len(pairs), count, replace=False)]

  @property
  def total(self) -> int:
    """Number of distinct responses, over all keys."""
    return sum(map(len, self._rewards.values()))

  def to_json(self) -> list:
    """All responses, for a checkpoint."""
    return [
      [key, list(response), reward] for key, of_key in self._rewards.items() for response, reward in of_key.items()
    ]

  def from_json(self, rows: list) -> None:
    """Restores the output of `to_json`."""
    self._rewards = {}
    for key, response, reward in rows:
      if self._forbidden.isdisjoint(response):
        self._rewards.setdefault(_name(key), {})[tuple(response)] = reward


def _name(key: Any) -> str:
  """A string for any key, stable across checkpoints: a conversation's is its JSON."""
  return key if isinstance(key, str) else json.dumps(key, sort_keys=True)
