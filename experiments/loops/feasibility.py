"""Before training: what the reference policy reaches, and whether the floor can be met at all."""

import jax
import numpy as np

from experiments import builders
from experiments.loops import sampling
from qempo_jax import duals


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
  sample = sampling.GroupSampler(policy, config, builders.training_rows(config))
  batch = config.data.prompts_per_step
  rng = jax.random.fold_in(jax.random.key(config.evaluation.seed), 1)
  rows = [sample.rows[i * len(sample.rows) // batch] for i in range(batch)]
  samples = sample(policy.params, rows, rng, config.sampling.group_size)
  rewards = sampling.group_rewards(builders.reward(config), samples)
  aim = builders.objective(config).min_reward
  if aim is not None:
    duals.resolve_floor(aim, rewards, max_reward=config.reward.max)
  return (
      f"Reference policy: reward {rewards.mean():.3f} on average, {rewards.max(axis=1).mean():.3f} for the best of"
      f" {rewards.shape[1]} (from {rewards.size} samples of {batch} prompts);"
      f" entropy {np.mean(samples.rollout.entropies.sum(-1)):.1f} nats a response;"
      f" the floor aimed at is {aim}"
  )
