"""Trajectory balance: formula, optimum, its tie to the policy gradient, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from qempo_jax import advantages, family, losses
from qempo_jax.testing import reference

HYPER = dict(alpha=0.5, beta=0.2)
group = hnp.arrays(np.float64, 5, elements=st.floats(-20, 0))


def _group(seed, size=6):
  rng = np.random.default_rng(seed)
  return -rng.exponential(5, size), rng.normal(size=size), -rng.exponential(5, size)


def test_golden_by_hand():
  # s = (r + 0.5 log q) / 0.5 = (0, 1); gap = s - log pi = (1, 3); log Z = 2; mean of squares = 1.
  loss = losses.trajectory_balance_loss(
    jnp.array([-1.0, -2.0]), jnp.array([1.0, 1.0]), jnp.array([-2.0, -1.0]), alpha=0.5, beta=0.5
  )
  np.testing.assert_allclose(loss, 1.0, rtol=1e-6)


def test_matches_the_formula_under_every_transformation(x64):
  loss = lambda *x: losses.trajectory_balance_loss(*x, **HYPER)
  groups = [_group(seed) for seed in range(4)]
  want = [reference.trajectory_balance_loss(*g, **HYPER) for g in groups]
  batch = [jnp.stack(x) for x in zip(*groups, strict=True)]
  np.testing.assert_allclose([loss(*map(jnp.asarray, g)) for g in groups], want, rtol=1e-12)
  np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*batch), want, rtol=1e-12)
  np.testing.assert_allclose(
    jax.lax.scan(lambda c, x: (c, loss(*x)), 0, batch)[1], want, rtol=1e-12
  )


def test_zero_with_zero_gradient_at_the_optimum(x64):
  _, rewards, ref = map(jnp.asarray, _group(0))
  log_probs = family.target_log_probs(rewards, ref, **HYPER)
  value, gradient = jax.value_and_grad(losses.trajectory_balance_loss)(
    log_probs, rewards, ref, **HYPER
  )
  np.testing.assert_allclose(value, 0, atol=1e-20)
  np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_on_samples_of_the_policy_its_gradient_is_twice_the_policy_gradient(x64):
  log_probs, rewards, ref = map(jnp.asarray, _group(1))
  shaped = advantages.shaped_rewards(rewards, log_probs, ref, **HYPER)
  policy_gradient = lambda x: -jnp.mean(advantages.group_mean(shaped) * x) / HYPER["alpha"]
  balance = jax.grad(losses.trajectory_balance_loss)(log_probs, rewards, ref, **HYPER)
  np.testing.assert_allclose(balance, 2 * jax.grad(policy_gradient)(log_probs), rtol=1e-12)


def test_log_z_carries_no_gradient(x64):
  log_probs, rewards, ref = map(jnp.asarray, _group(2))
  s = (rewards + HYPER["beta"] * ref) / HYPER["alpha"]
  log_z = jnp.mean(s - log_probs)
  fixed = lambda x: jnp.mean((log_z + x - s) ** 2)
  gradient = jax.grad(losses.trajectory_balance_loss)(log_probs, rewards, ref, **HYPER)
  np.testing.assert_allclose(gradient, jax.grad(fixed)(log_probs), rtol=1e-12)
  check_grads(fixed, (log_probs,), order=1)
  others = jax.grad(losses.trajectory_balance_loss, argnums=(1, 2))(
    log_probs, rewards, ref, **HYPER
  )
  assert all(np.all(np.asarray(g) == 0) for g in others)


@settings(max_examples=12, deadline=None)
@given(group, group, group, st.floats(-5, 5), st.permutations(range(5)))
def test_invariances(log_probs, rewards, ref, shift, order):
  order = np.array(order)
  with jax.enable_x64(True):
    loss = lambda *x: float(losses.trajectory_balance_loss(*map(jnp.asarray, x), **HYPER))
    base = loss(log_probs, rewards, ref)
    close = lambda x: np.testing.assert_allclose(x, base, rtol=1e-7, atol=1e-7)
    close(loss(log_probs, rewards + shift, ref))
    close(loss(log_probs + shift, rewards, ref))
    close(loss(log_probs[order], rewards[order], ref[order]))
    scaled = losses.trajectory_balance_loss(
      jnp.asarray(log_probs), jnp.asarray(3 * rewards), jnp.asarray(ref), alpha=1.5, beta=0.6
    )
    close(scaled)


def test_masked_members_and_degenerate_groups():
  log_probs, rewards, ref = (jnp.float32(x) for x in _group(3))
  mask = jnp.array([1, 1, 0, 1, 0, 1], bool)
  dirty = jnp.where(mask, log_probs, -jnp.inf)
  value, gradient = jax.value_and_grad(losses.trajectory_balance_loss)(
    dirty, rewards, ref, mask, **HYPER
  )
  kept = losses.trajectory_balance_loss(log_probs[mask], rewards[mask], ref[mask], **HYPER)
  np.testing.assert_allclose(value, kept, rtol=1e-5)
  assert np.all(np.isfinite(gradient)) and np.all(np.asarray(gradient)[~np.asarray(mask)] == 0)
  assert losses.trajectory_balance_loss(dirty, rewards, ref, jnp.zeros(6), **HYPER) == 0
  assert losses.trajectory_balance_loss(log_probs[:1], rewards[:1], ref[:1], **HYPER) == 0


def test_half_precision_and_extremes():
  log_probs, rewards, ref = (jnp.asarray(x, jnp.bfloat16) for x in _group(4))
  assert losses.trajectory_balance_loss(log_probs, rewards, ref, **HYPER).dtype == jnp.float32
  far = jnp.array([-1e5, 0.0])
  value, gradient = jax.value_and_grad(losses.trajectory_balance_loss)(
    far, far, far, alpha=1e-3, beta=1e-3
  )
  assert np.isfinite(value) and np.all(np.isfinite(gradient))
  with pytest.raises(AssertionError):
    losses.trajectory_balance_loss(log_probs, rewards[:2], ref, **HYPER)
