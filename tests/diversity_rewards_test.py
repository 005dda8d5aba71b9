"""Rewards of neighbouring methods."""

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import diversity_rewards, family


def test_mara_makes_the_rlhf_optimum_flat_on_the_good_members():
  rewards, ref = jnp.array([1.0, 0.9, 0.2, 0.95]), jnp.array([-1.0, -4.0, -0.5, -2.0])
  augmented = diversity_rewards.mara_rewards(rewards, ref, min_reward=0.9, beta=0.3)
  optimum = family.target_log_probs(augmented, ref, alpha=0.3, beta=0.3)
  good = jnp.array([0, 1, 3])
  np.testing.assert_allclose(optimum[good], optimum[0], rtol=1e-5)
  assert augmented[0] == rewards[0] and augmented[2] == rewards[2]


def test_mara_without_good_members_leaves_rewards_alone():
  rewards, ref = jnp.array([0.1, 0.2]), jnp.array([-1.0, -4.0])
  np.testing.assert_array_equal(
    diversity_rewards.mara_rewards(rewards, ref, min_reward=1.0, beta=0.3), rewards
  )


def test_quality_times_diversity_favours_the_odd_one_out():
  distances = jnp.array([[5.0, 0, 1], [0, 5, 1], [1, 1, 5]])  # the diagonal is ignored
  shaped = diversity_rewards.quality_times_diversity(jnp.array([1.0, 1, 2]), distances)
  np.testing.assert_allclose(shaped, [0.5, 0.5, 2])
  assert diversity_rewards.quality_times_diversity(jnp.ones(1), jnp.ones((1, 1)))[0] == 0


def test_both_are_detached():
  ref, distances = jnp.array([-1.0, -2.0]), jnp.ones((2, 2))
  for f in (
    lambda r: diversity_rewards.mara_rewards(r, ref, min_reward=0.0, beta=0.1),
    lambda r: diversity_rewards.quality_times_diversity(r, distances),
  ):
    total = lambda r, f=f: jnp.sum(f(r))
    np.testing.assert_array_equal(jax.grad(total)(jnp.array([1.0, 2.0])), [0, 0])
