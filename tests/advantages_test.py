"""Shaped rewards and group baselines: formulas, no gradient, degenerate groups, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qempo_jax import advantages
from qempo_jax.testing import reference

BASELINES = {
  "leave_one_out": advantages.leave_one_out,
  "group_mean": advantages.group_mean,
  "std_normalised": lambda x, mask=None: advantages.std_normalised(x, mask, min_std=1e-3),
}
values = hnp.arrays(np.float32, 6, elements=st.floats(-8, 8, width=32))
order = st.permutations(range(6))


def _group(seed, size=6):
  rng = np.random.default_rng(seed)
  return rng.normal(size=size), -rng.exponential(5, size), -rng.exponential(5, size)


def test_shaped_rewards_match_the_formula_and_carry_no_gradient(x64):
  group = _group(0)
  shaped = advantages.shaped_rewards(*group, alpha=0.5, beta=0.2)
  np.testing.assert_allclose(
    shaped, reference.shaped_rewards(*group, alpha=0.5, beta=0.2), rtol=1e-12
  )
  total = lambda *x: jnp.sum(advantages.shaped_rewards(*x, alpha=0.5, beta=0.2))
  assert all(
    np.all(np.asarray(g) == 0) for g in jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, group))
  )


@pytest.mark.parametrize(("lam", "mu", "h"), [(2.0, 0.5, 1.0), (3.0, 0.0, 1.0), (10.0, 1.0, 0.0)])
def test_lagrangian_rewards_are_shaped_rewards_on_a_bounded_scale(x64, lam, mu, h):
  group = _group(1)
  lagrangian = advantages.lagrangian_rewards(
    *group, quality_multiplier=lam, kl_multiplier=mu, entropy_weight=h
  )
  shaped = advantages.shaped_rewards(*group, alpha=(h + mu) / lam, beta=mu / lam)
  np.testing.assert_allclose(lagrangian, shaped * lam / (h + lam + mu), rtol=1e-12)
  total = lambda *x: jnp.sum(
    advantages.lagrangian_rewards(*x, quality_multiplier=lam, kl_multiplier=mu, entropy_weight=h)
  )
  assert all(
    np.all(np.asarray(g) == 0) for g in jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, group))
  )


def test_lagrangian_without_quality_multiplier_is_pure_entropy():
  group = _group(2)
  only = advantages.lagrangian_rewards(
    *group, quality_multiplier=0.0, kl_multiplier=0.0, entropy_weight=1.0
  )
  np.testing.assert_allclose(only, -group[1], rtol=1e-6)


def test_goldens_by_hand():
  x = jnp.array([1.0, 2.0, 6.0])
  np.testing.assert_allclose(advantages.leave_one_out(x), [-3, -1.5, 4.5], rtol=1e-6)
  np.testing.assert_allclose(advantages.group_mean(x), [-2, -1, 3], rtol=1e-6)
  np.testing.assert_allclose(advantages.std_normalised(x[:2], min_std=0.1), [-1, 1], rtol=1e-6)
  np.testing.assert_allclose(advantages.std_normalised(x[:2], min_std=5.0), [-0.1, 0.1], rtol=1e-6)
  mask = jnp.array([True, False, True])
  np.testing.assert_allclose(advantages.leave_one_out(x, mask), [-5, 0, 5], rtol=1e-6)
  np.testing.assert_allclose(advantages.group_mean(x, mask), [-2.5, 0, 2.5], rtol=1e-6)
  np.testing.assert_allclose(advantages.std_normalised(x, mask, min_std=0.1), [-1, 0, 1], rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(values, st.floats(-4, 4, width=32), order)
def test_baselines_ignore_a_shift_and_follow_a_permutation(x, shift, order):
  order = np.array(order)
  np.testing.assert_allclose(
    advantages.leave_one_out(x), reference.leave_one_out(np.float64(x)), atol=1e-4
  )
  np.testing.assert_allclose(
    advantages.group_mean(x), 5 / 6 * advantages.leave_one_out(x), atol=1e-4
  )
  for name in ("leave_one_out", "group_mean"):
    baseline = BASELINES[name]
    np.testing.assert_allclose(baseline(x + shift), baseline(x), atol=1e-4)
    np.testing.assert_allclose(baseline(x[order]), np.asarray(baseline(x))[order], atol=1e-4)
    np.testing.assert_allclose(baseline(3 * x), 3 * baseline(x), atol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_degenerate_groups_are_defined(name):
  baseline = BASELINES[name]
  np.testing.assert_allclose(baseline(jnp.full(4, 0.3)), np.zeros(4), atol=1e-6)  # no spread
  np.testing.assert_array_equal(
    baseline(jnp.full(4, jnp.nan), jnp.zeros(4, bool)), np.zeros(4)
  )  # all masked
  dirty = baseline(jnp.array([1.0, jnp.inf, 2.0]), jnp.array([1, 0, 1]))
  np.testing.assert_allclose(dirty[jnp.array([0, 2])], baseline(jnp.array([1.0, 2.0])), rtol=1e-6)
  assert np.all(np.isfinite(dirty)) and dirty[1] == 0
  assert np.all(np.asarray(jax.grad(lambda x: jnp.sum(baseline(x)))(jnp.arange(3.0))) == 0)
  assert baseline(jnp.arange(3, dtype=jnp.bfloat16)).dtype == jnp.float32
  np.testing.assert_allclose(
    jax.jit(jax.vmap(baseline))(jnp.eye(3))[1], baseline(jnp.eye(3)[1]), rtol=1e-6
  )
  with pytest.raises(AssertionError):
    baseline(jnp.ones((2, 2)))


def test_a_member_alone():
  assert advantages.leave_one_out(jnp.array([2.0]))[0] == 2
  assert advantages.group_mean(jnp.array([2.0]))[0] == 0
  np.testing.assert_array_equal(
    advantages.leave_one_out(jnp.array([2.0, 7.0]), jnp.array([1, 0])), [2, 0]
  )


def test_a_group_without_reward_spread_keeps_its_entropy_gradient():
  rewards, log_probs = jnp.ones(4), jnp.array([-1.0, -2.0, -3.0, -4.0])
  shaped = advantages.shaped_rewards(rewards, log_probs, log_probs, alpha=0.5, beta=0.0)
  np.testing.assert_allclose(advantages.group_mean(shaped), [-0.75, -0.25, 0.25, 0.75], rtol=1e-6)


def test_shapes_must_agree():
  with pytest.raises(AssertionError):
    advantages.shaped_rewards(jnp.ones(3), jnp.ones(2), jnp.ones(3), alpha=1.0, beta=0.0)
