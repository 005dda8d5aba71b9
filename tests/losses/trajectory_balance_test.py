"""Trajectory balance, besides the checks of `battery_test`: its optimum, and its relation to the policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import family
from qempo_jax import losses

HYPER = dict(alpha=0.5, beta=0.2)


def _group(seed, size=6):
  rng = np.random.default_rng(seed)
  return -rng.exponential(5, size), rng.normal(size=size), -rng.exponential(5, size)


def test_zero_with_zero_gradient_at_the_optimum(x64):
  _, rewards, ref = map(jnp.asarray, _group(0))
  log_probs = family.target_log_probs(rewards, ref, **HYPER)
  value, gradient = jax.value_and_grad(losses.trajectory_balance_loss)(log_probs, rewards, ref, **HYPER)
  np.testing.assert_allclose(value, 0, atol=1e-20)
  np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_on_samples_of_the_policy_its_gradient_is_twice_the_policy_gradient(x64):
  log_probs, rewards, ref = map(jnp.asarray, _group(1))
  shaped = advantages.shaped_rewards(rewards, log_probs, ref, **HYPER)
  policy_gradient = lambda x: -jnp.mean(advantages.group_mean(shaped) * x) / HYPER["alpha"]
  balance = jax.grad(losses.trajectory_balance_loss)(log_probs, rewards, ref, **HYPER)
  np.testing.assert_allclose(balance, 2 * jax.grad(policy_gradient)(log_probs), rtol=1e-12)


def test_a_group_of_one_and_without_a_mask():
  log_probs, rewards, ref = (jnp.float32(x) for x in _group(3))
  assert losses.trajectory_balance_loss(log_probs[:1], rewards[:1], ref[:1], **HYPER) == 0
  whole = losses.trajectory_balance_loss(log_probs, rewards, ref, jnp.ones(6), **HYPER)
  assert losses.trajectory_balance_loss(log_probs, rewards, ref, **HYPER) == whole > 0
  with pytest.raises(AssertionError):
    losses.trajectory_balance_loss(log_probs, rewards[:2], ref, **HYPER)
