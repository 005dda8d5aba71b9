"""The reference on the training prompts: its figures before training, and the feasibility of the floor."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from experiments import samples
from qempo_jax import duals
from qempo_jax.errors import InputError
from qempo_jax.rewards import checked


class Measured(NamedTuple):
  """Samples of the reference, scored.

  Attributes:
    rewards: [P, n]; the least one for responses that could not be judged.
    log_probs: [P, n] of whole responses under the reference at the sampler's temperature, nats.
    entropies: [P, n] sums of the exact next-token entropies along the samples, nats.
    truncated: [P, n].
    responses: [P, n] token ids of each response, as bytes.
    dropped: prompts left out as too long.
    unscored: share of responses that could not be judged.
  """

  rewards: np.ndarray
  log_probs: np.ndarray
  entropies: np.ndarray
  truncated: np.ndarray
  responses: np.ndarray
  dropped: int
  unscored: float = 0.0


class Reference:
  """Samples the reference and scores the responses."""

  def __init__(
    self,
    sample: samples.GroupSampler,
    reward: Callable,
    params: Any,
    *,
    seed: int,
    floor: float | None,
    margin: float,
    max_reward: float | None,
  ):
    """Samples nothing yet.

    Args:
      sample: of the training prompts.
      reward: the reward function.
      params: of the reference.
      seed: of the samples.
      floor: least mean reward; None for none.
      margin: distance above the floor at which the controller aims.
      max_reward: the largest reward there is; None if unknown.
    """
    self.sample, self.reward, self._params, self._seed = sample, reward, params, seed
    self._floor, self._margin, self._max_reward = floor, margin, max_reward

  def beyond_reach(self) -> bool:
    """True where the floor aimed at is above the largest reward there is."""
    return None not in (self._floor, self._max_reward) and self._floor + self._margin > self._max_reward

  def check(self, num_prompts: int, group_size: int) -> str:
    """Samples a few training prompts and checks the floor against their rewards; returns a line for the user.

    Raises:
      InputError: the floor is out of reach; the message says what the reference policy can reach.
    """
    found = self.measure(num_prompts=num_prompts, batch=num_prompts, group_size=group_size, rounds=1)
    self.check_floor(found)
    rewards, aim = found.rewards, None if self._floor is None else round(self._floor + self._margin, 6)
    return (
      f"Reference policy: reward {rewards.mean():.3f} on average, {rewards.max(axis=1).mean():.3f} for the best of"
      f" {rewards.shape[1]} (from {rewards.size} samples of {num_prompts} prompts);"
      f" entropy {found.entropies.mean():.1f} nats a response; the floor aimed at is {aim}"
      + f"; WARNING: {found.unscored:.1%} could not be judged, and count as the least reward"
      * (found.unscored > 0.01)
    )

  def measure(self, *, num_prompts: int | None, batch: int, group_size: int, rounds: int) -> Measured:
    """Samples the reference on training prompts and scores the responses.

    Args:
      num_prompts: number of prompts, spread evenly over the training rows; None for all of them.
      batch: prompts sampled at once.
      group_size: samples of a prompt at once.
      rounds: groups of each prompt: n = rounds * group_size.
    """
    sample = self.sample
    num_prompts = num_prompts or len(sample.rows)
    rows = [sample.rows[i * len(sample.rows) // num_prompts] for i in range(num_prompts)]
    rng = jax.random.fold_in(jax.random.key(self._seed), 1)
    blocks = []
    for start in range(0, num_prompts, batch):
      chosen = rows[start : start + batch]
      padded = chosen + chosen[:1] * (batch - len(chosen))  # one shape is compiled
      found = []
      for index in range(rounds):
        key = rng if not start + index else jax.random.fold_in(rng, start * rounds + index)
        found.append(self._scored(sample(self._params, padded, key, group_size)))
      blocks.append([np.concatenate(part, axis=1)[: len(chosen)] for part in zip(*found)])
    rewards, *others = (np.concatenate(part) for part in zip(*blocks))
    unscored = float(np.isnan(rewards).mean())
    return Measured(checked.least_for_unscored(rewards), *others, sample.dropped, unscored)

  def check_floor(self, found: Measured) -> None:
    """Raises InputError where the floor aimed at is above the largest reward there is, or, unknown, the best seen."""
    if self._floor is None:
      return
    try:
      duals.resolve_floor(self._floor + self._margin, found.rewards, max_reward=self._max_reward)
    except InputError as error:
      raise InputError(
        f"{error} (constraints.quality.bound={self._floor:g} plus its margin={self._margin:g}; reward.max is the largest"
        " possible reward)"
      ) from error

  def _scored(self, drawn: samples.Samples) -> tuple[np.ndarray, ...]:
    rollout = drawn.rollout
    sums = (np.asarray(part, np.float64).sum(-1) for part in (rollout.log_probs, rollout.entropies))
    responses = np.array([[np.asarray(ids, np.int32).tobytes() for ids in group] for group in drawn.responses], object)
    return samples.group_rewards(self.reward, drawn), *sums, np.asarray(rollout.truncated), responses
