"""Replay buffer of good responses, so that an answer that sampling misses is not forgotten."""

import base64
import collections
from collections.abc import Collection
from collections.abc import Sequence
import io
import json
from typing import Any

import numpy as np


class ReplayBuffer:
  """Distinct responses with their rewards, by a JSON-able key, such as the prompt or a column's value.

  Trajectory balance needs no importance weights, so a response of an earlier policy trains as well as an on-policy one.
  It never counts in measurements. Over its capacity the buffer drops the oldest responses, by when each was first found,
  so that a rare response stays as long as a frequent one. A response takes 4 bytes a token.
  """

  def __init__(self, min_reward: float, forbidden: Collection[int] = (), *, capacity: int):
    """Keeps responses with a reward of at least `min_reward` and without ids of `forbidden`.

    Args:
      min_reward: least reward to keep.
      forbidden: ids that the policy never samples, `ModelConfig.forbidden`; an older checkpoint may contain them.
      capacity: most responses, over all keys.
    """
    self.min_reward, self._forbidden, self._capacity = min_reward, frozenset(forbidden), capacity
    self._clear()

  def _clear(self) -> None:
    self._rewards: dict[str, dict[bytes, float]] = {}
    self._age: collections.deque[tuple[str, bytes]] = collections.deque()  # Oldest first.

  def add(self, key: Any, response: Sequence[int], reward: float) -> None:
    """Stores a response of token ids, EOS included, if its reward is high enough."""
    if reward >= self.min_reward:
      self._put(_name(key), np.asarray(response, np.int32), float(reward))

  def _put(self, name: str, ids: np.ndarray, reward: float) -> None:
    if not self._forbidden.isdisjoint(ids.tolist()):
      return
    of_key, response = self._rewards.setdefault(name, {}), ids.tobytes()
    if response not in of_key:
      self._age.append((name, response))
    of_key[response] = reward
    if len(self._age) > self._capacity:
      oldest, dropped = self._age.popleft()
      del self._rewards[oldest][dropped]
      if not self._rewards[oldest]:
        del self._rewards[oldest]

  def draw(self, key: Any, count: int, rng: np.random.Generator) -> list[tuple[tuple[int, ...], float]]:
    """Draws up to `count` distinct (response, reward) pairs of a key, uniformly."""
    pairs = list(self._rewards.get(_name(key), {}).items())
    if len(pairs) > count:
      pairs = [pairs[index] for index in rng.choice(len(pairs), count, replace=False)]
    return [(tuple(np.frombuffer(response, np.int32).tolist()), reward) for response, reward in pairs]

  @property
  def total(self) -> int:
    """Number of distinct responses, over all keys."""
    return len(self._age)

  def to_json(self) -> str:
    """All responses, oldest first, for a checkpoint: arrays as text."""
    names = {name: place for place, name in enumerate(self._rewards)}
    arrays = {
      "names": np.array(json.dumps(list(names))),
      "owners": np.array([names[name] for name, _ in self._age], np.int32),
      "lengths": np.array([len(response) // 4 for _, response in self._age], np.int32),
      "rewards": np.array([self._rewards[name][response] for name, response in self._age], np.float64),
      "tokens": _narrow(np.frombuffer(b"".join(response for _, response in self._age), np.int32)),
    }
    return packed(arrays)

  def from_json(self, saved: str | list) -> None:
    """Restores the output of `to_json`; an older version's is a list of [key, ids, reward]."""
    self._clear()
    if isinstance(saved, list):
      for key, ids, reward in saved:
        self._put(_name(key), np.asarray(ids, np.int32), reward)
      return
    arrays = unpacked(saved)
    names = json.loads(str(arrays["names"]))
    ends = np.cumsum(arrays["lengths"])
    for owner, end, length, reward in zip(arrays["owners"], ends, arrays["lengths"], arrays["rewards"]):
      self._put(names[owner], arrays["tokens"][end - length : end].astype(np.int32), float(reward))


def packed(arrays: dict[str, np.ndarray]) -> str:
  """Arrays by name as text, for JSON; token ids hardly compress, and would take seconds of the loop."""
  file = io.BytesIO()
  np.savez(file, **arrays)
  return base64.b64encode(file.getvalue()).decode()


def unpacked(text: str) -> dict[str, np.ndarray]:
  """The arrays of `packed`."""
  with np.load(io.BytesIO(base64.b64decode(text))) as file:
    return dict(file)


def _narrow(ids: np.ndarray) -> np.ndarray:
  """The ids in the smallest type that holds them."""
  return ids.astype(np.min_scalar_type(int(ids.max(initial=0))))


def _name(key: Any) -> str:
  """A string for any key, stable across checkpoints: a conversation's is its JSON."""
  return key if isinstance(key, str) else json.dumps(key, sort_keys=True)
