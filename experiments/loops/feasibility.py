"""Before training: what the reference policy reaches, and whether the floor can be met at all."""

from typing import NamedTuple

import jax
import numpy as np

from experiments import builders
from experiments import constrained
from experiments.loops import sampling
from qempo_jax import duals
from qempo_jax.errors import InputError


class Measured(NamedTuple):
  """Samples of the reference, scored.

  Attributes:
    rewards: [P, n].
    log_probs: [P, n] of whole responses under the reference at the sampler's temperature, nats.
    entropies: [P, n] sums of the exact next-token entropies along the samples, nats.
    truncated: [P, n].
    dropped: prompts left out as too long.
  """

  rewards: np.ndarray
  log_probs: np.ndarray
  entropies: np.ndarray
  truncated: np.ndarray
  dropped: int


def check(config, policy: builders.Policy) -> str:
  """Samples the reference on a few training prompts and checks the quality floor against its rewards.

  Args:
    config: a run's config.
    policy: the reference.

  Returns:
    A line for the user.

  Raises:
    InputError: the floor is out of reach; the message says what the reference policy can reach.
  """
  batch = config.data.prompts_per_step
  found = measure(config, policy, num_prompts=batch, batch=batch, group_size=config.sampling.group_size, rounds=1)
  aim = constrained.bound(config, "quality", aim=True)
  check_floor(config, found)
  rewards = found.rewards
  return (
    f"Reference policy: reward {rewards.mean():.3f} on average, {rewards.max(axis=1).mean():.3f} for the best of"
    f" {rewards.shape[1]} (from {rewards.size} samples of {batch} prompts);"
    f" entropy {found.entropies.mean():.1f} nats a response;"
    f" the floor aimed at is {aim and round(aim, 6)}"
  )


def measure(
  config, policy: builders.Policy, *, num_prompts: int | None, batch: int, group_size: int, rounds: int
) -> Measured:
  """Samples the reference on training prompts and scores the responses.

  Args:
    config: a run's config.
    policy: the reference.
    num_prompts: how many, spread evenly over the training rows; None for all of them.
    batch: prompts sampled at once.
    group_size: samples of a prompt at once.
    rounds: how many such groups for each prompt: n = rounds * group_size.
  """
  sample = sampling.GroupSampler(policy, config, builders.training_rows(config, policy.tokenizer))
  reward = builders.reward(config)
  num_prompts = num_prompts or len(sample.rows)
  rows = [sample.rows[i * len(sample.rows) // num_prompts] for i in range(num_prompts)]
  rng = jax.random.fold_in(jax.random.key(config.evaluation.seed), 1)
  blocks = []
  for start in range(0, num_prompts, batch):
    chosen = rows[start : start + batch]
    padded = chosen + chosen[:1] * (batch - len(chosen))  # one shape is compiled
    found = []
    for index in range(rounds):
      key = rng if not start + index else jax.random.fold_in(rng, start * rounds + index)
      found.append(_scored(sample(policy.params, padded, key, group_size), reward))
    blocks.append([np.concatenate(part, axis=1)[: len(chosen)] for part in zip(*found)])
  return Measured(*(np.concatenate(part) for part in zip(*blocks)), sample.dropped)


def _scored(samples: sampling.Samples, reward) -> tuple[np.ndarray, ...]:
  rollout = samples.rollout
  sums = (np.asarray(part, np.float64).sum(-1) for part in (rollout.log_probs, rollout.entropies))
  return sampling.group_rewards(reward, samples), *sums, np.asarray(rollout.truncated)


def check_floor(config, found: Measured) -> None:
  """Raises InputError where the floor aimed at is above the largest reward there is, or, unknown, the best seen."""
  aim = constrained.bound(config, "quality", aim=True)
  if aim is None:
    return
  try:
    duals.resolve_floor(aim, found.rewards, max_reward=config.reward.max)
  except InputError as error:
    q = config.constraints.quality
    raise InputError(f"{error} (constraints.quality.bound={q.bound:g} plus its margin={q.margin:g})") from error
