"""Shaped rewards and group baselines, besides the checks of `losses/battery_test`: their relations, groups of one."""

import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages

BASELINES = {
  "leave_one_out": advantages.leave_one_out,
  "group_mean": advantages.group_mean,
  "std_normalised": lambda x, mask=None: advantages.std_normalised(x, mask, min_std=1e-3),
}


def _group(seed, size=6):
  rng = np.random.default_rng(seed)
  return rng.normal(size=size), -rng.exponential(5, size), -rng.exponential(5, size)


@pytest.mark.parametrize(("lam", "mu", "h"), [(2.0, 0.5, 1.0), (3.0, 0.0, 1.0), (10.0, 1.0, 0.0)])
def test_lagrangian_rewards_are_shaped_rewards_on_a_bounded_scale(x64, lam, mu, h):
  group = _group(1)
  lagrangian = advantages.lagrangian_rewards(*group, quality_multiplier=lam, kl_multiplier=mu, entropy_weight=h)
  shaped = advantages.shaped_rewards(*group, alpha=(h + mu) / lam, beta=mu / lam)
  np.testing.assert_allclose(lagrangian, shaped * lam / (h + lam + mu), rtol=1e-12)


def test_lagrangian_without_quality_multiplier_is_pure_entropy():
  group = _group(2)
  only = advantages.lagrangian_rewards(*group, quality_multiplier=0.0, kl_multiplier=0.0, entropy_weight=1.0)
  np.testing.assert_allclose(only, -group[1], rtol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_a_mask_is_optional_and_groups_have_one_axis(name):
  x = jnp.array([1.0, 2.0, 6.0])
  np.testing.assert_array_equal(BASELINES[name](x), BASELINES[name](x, jnp.ones(3, bool)))
  with pytest.raises(AssertionError):
    BASELINES[name](jnp.ones((2, 2)))


def test_the_group_mean_shrinks_leave_one_out(x64):
  x = jnp.asarray(_group(3)[0])
  np.testing.assert_allclose(advantages.group_mean(x), 5 / 6 * advantages.leave_one_out(x), rtol=1e-12)


def test_a_member_alone():
  assert advantages.leave_one_out(jnp.array([2.0]))[0] == 2
  assert advantages.group_mean(jnp.array([2.0]))[0] == 0
  np.testing.assert_array_equal(advantages.leave_one_out(jnp.array([2.0, 7.0]), jnp.array([1, 0])), [2, 0])


def test_a_group_without_reward_spread_keeps_its_entropy_gradient():
  rewards, log_probs = jnp.ones(4), jnp.array([-1.0, -2.0, -3.0, -4.0])
  shaped = advantages.shaped_rewards(rewards, log_probs, log_probs, alpha=0.5, beta=0.0)
  np.testing.assert_allclose(advantages.group_mean(shaped), [-0.75, -0.25, 0.25, 0.75], rtol=1e-6)


def test_shapes_must_agree():
  with pytest.raises(AssertionError):
    advantages.shaped_rewards(jnp.ones(3), jnp.ones(2), jnp.ones(3), alpha=1.0, beta=0.0)
