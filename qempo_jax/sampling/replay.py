"""Acceptable responses found so far, kept so that an answer which left the samples can be found again."""

from collections.abc import Collection
from collections.abc import Sequence
import json
from typing import Any

import numpy as np


class ReplayBuffer:
  """Distinct responses with their rewards, by key (a prompt, or whatever its answers are shared by, JSON-able).

  Trajectory balance needs no importance weights, so a response found by an earlier policy is as good as a
  fresh one for training; it never counts in what is measured.
  """

  def __init__(self, min_reward: float, forbidden: Collection[int] = ()):
    """Keeps responses whose reward is at least `min_reward`, and none that holds an id of `forbidden`.

    Args:
      min_reward: the least reward that is kept.
      forbidden: ids that the policy never samples, `ModelConfig.forbidden`; an older checkpoint may hold them.
    """
    self.min_reward, self._forbidden = min_reward, frozenset(forbidden)
    self._found: dict[str, dict[tuple[int, ...], float]] = {}

  def add(self, key: Any, response: Sequence[int], reward: float) -> None:
    """Remembers a response of token ids, its ending token included, if it is good enough."""
    if reward >= self.min_reward and self._forbidden.isdisjoint(map(int, response)):
      self._found.setdefault(_name(key), {})[tuple(int(token) for token in response)] = float(reward)

  def draw(self, key: Any, count: int, rng: np.random.Generator):
    """Up to `count` distinct (response, reward) pairs of a key, uniformly."""
    found = list(self._found.get(_name(key), {}).items())
    if len(found) <= count:
      return found
    return [found[index] for index in rng.choice(len(found), count, replace=False)]

  @property
  def total(self) -> int:
    """How many distinct responses there are, over all keys."""
    return sum(map(len, self._found.values()))

  def to_json(self) -> list:
    """All that is remembered, for a checkpoint."""
    return [[key, list(response), reward] for key, found in self._found.items() for response, reward in found.items()]

  def from_json(self, rows: list) -> None:
    """Takes back what `to_json` gave."""
    self._found = {}
    for key, response, reward in rows:
      if self._forbidden.isdisjoint(response):
        self._found.setdefault(_name(key), {})[tuple(response)] = reward


def _name(key: Any) -> str:
  """A string for any key, the same after a checkpoint: a conversation's is its JSON."""
  return key if isinstance(key, str) else json.dumps(key, sort_keys=True)
