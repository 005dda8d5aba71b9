"""Policy-gradient losses: formulas, masks, clipping, and what they do at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from qempo_jax import losses
from qempo_jax.testing import reference

CLIP = dict(clip_low=0.2, clip_high=0.3)
CLIPPED = [
  ("ppo_clip_loss", CLIP),
  ("grpo_loss", CLIP),
  ("dr_grpo_loss", CLIP | dict(max_tokens=8)),
  ("sequence_clip_loss", CLIP),
  ("gspo_loss", CLIP),
]


def _trajectory(seed, length=5, total=7):
  rng = np.random.default_rng(seed)
  new = -rng.exponential(1.0, total)
  return new, new + 0.3 * rng.normal(size=total), rng.normal(), np.arange(total) < length


def test_golden_by_hand():
  log_probs, mask = jnp.array([-1.0, -2.0, -4.0]), jnp.array([True, True, False])
  assert losses.policy_gradient_loss(log_probs, 0.5, mask) == 1.5
  assert losses.policy_gradient_loss(log_probs, jnp.array([1.0, -1.0, 9.0]), mask) == -1
  np.testing.assert_array_equal(
    jax.grad(losses.policy_gradient_loss)(log_probs, 0.5, mask), [-0.5, -0.5, 0]
  )
  # rho = 2 and 1/2; clipped from above to 1.3 for A = 1, from below to 0.8 for A = -1.
  new, old = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.4, 0.4]))
  loss = losses.ppo_clip_loss(new, old, jnp.array([1.0, -1.0]), jnp.ones(2), **CLIP)
  np.testing.assert_allclose(loss, -1.3 + 0.8, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_policy_gradient_matches_the_formula(x64, seed):
  new, _, advantage, mask = _trajectory(seed)
  advantages = np.random.default_rng(seed + 9).normal(size=len(new))
  for a in (advantage, advantages):
    want = reference.policy_gradient_loss(new, a, mask)
    np.testing.assert_allclose(
      losses.policy_gradient_loss(jnp.asarray(new), a, mask), want, rtol=1e-12
    )
    np.testing.assert_allclose(jax.jit(losses.policy_gradient_loss)(new, a, mask), want, rtol=1e-12)


@pytest.mark.parametrize(("name", "hyper"), CLIPPED)
def test_clipped_losses_match_their_formulas(x64, name, hyper):
  loss, expected = getattr(losses, name), getattr(reference, name)
  for seed in range(6):
    new, old, advantage, mask = _trajectory(seed)
    want = expected(new, old, advantage, mask, **hyper)
    np.testing.assert_allclose(
      loss(jnp.asarray(new), old, advantage, mask, **hyper), want, rtol=1e-12
    )
    jitted = jax.jit(functools.partial(loss, **hyper))
    np.testing.assert_allclose(jitted(new, old, advantage, mask), want, rtol=1e-12)


@pytest.mark.parametrize(("name", "hyper"), CLIPPED)
def test_vmap_and_scan_agree_with_a_loop(x64, name, hyper):
  loss = lambda x: getattr(losses, name)(*x, **hyper)
  rows = [_trajectory(seed) for seed in range(4)]
  batch = jax.tree.map(lambda *x: jnp.stack(x), *rows)
  looped = [loss(tuple(map(jnp.asarray, row))) for row in rows]
  np.testing.assert_allclose(jax.vmap(loss)(batch), looped, rtol=1e-12)
  np.testing.assert_allclose(
    jax.lax.scan(lambda c, x: (c, loss(x)), 0, batch)[1], looped, rtol=1e-12
  )


@pytest.mark.parametrize(("name", "hyper"), CLIPPED)
def test_gradients_match_finite_differences(x64, name, hyper):
  new, old, advantage, mask = map(jnp.asarray, _trajectory(1))
  check_grads(
    lambda x: getattr(losses, name)(x, old, advantage, mask, **hyper),
    (new,),
    order=1,
    modes=["rev"],
  )


@pytest.mark.parametrize(("name", "hyper"), CLIPPED)
def test_padding_holds_nothing(name, hyper):
  new, old, advantage, mask = _trajectory(2)
  clean = jax.value_and_grad(getattr(losses, name))(
    jnp.float32(new), jnp.float32(old), advantage, mask, **hyper
  )
  dirty_new, dirty_old = (jnp.where(mask, jnp.float32(x), jnp.nan) for x in (new, old))
  dirty = jax.value_and_grad(getattr(losses, name))(dirty_new, dirty_old, advantage, mask, **hyper)
  for a, b in zip(clean, dirty, strict=True):
    np.testing.assert_array_equal(a, b)
  nothing = getattr(losses, name)(dirty_new, dirty_old, advantage, np.zeros_like(mask), **hyper)
  assert nothing == 0


def test_no_gradient_through_advantages_or_old_log_probs():
  new, old, advantage, mask = _trajectory(3)
  assert jax.grad(losses.policy_gradient_loss, argnums=1)(jnp.float32(new), advantage, mask) == 0
  clipped = jax.grad(losses.ppo_clip_loss, argnums=(1, 2))
  gradients = clipped(jnp.float32(new), jnp.float32(old), advantage, mask, **CLIP)
  assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_on_policy_gradients_are_one_up_to_normalisation():
  new, _, advantage, mask = _trajectory(4)
  new = jnp.float32(new)
  gradient = lambda name, **hyper: jax.grad(getattr(losses, name))(
    new, new, advantage, mask, **hyper
  )
  plain = jax.grad(losses.policy_gradient_loss)(new, advantage, mask)
  np.testing.assert_allclose(gradient("ppo_clip_loss", **CLIP), plain, rtol=1e-6)
  np.testing.assert_allclose(gradient("sequence_clip_loss", **CLIP), plain, rtol=1e-6)
  np.testing.assert_allclose(gradient("grpo_loss", **CLIP), plain / 5, rtol=1e-6)
  np.testing.assert_allclose(gradient("gspo_loss", **CLIP), plain / 5, rtol=1e-6)
  np.testing.assert_allclose(gradient("dr_grpo_loss", **CLIP, max_tokens=8), plain / 8, rtol=1e-6)


def test_asymmetric_bounds_cut_each_side_where_they_say():
  loss = lambda x, a: losses.ppo_clip_loss(x, jnp.zeros(1), a, jnp.ones(1), **CLIP)
  gradient = lambda rho, a: jax.grad(loss)(jnp.log(jnp.array([rho])), a)
  assert gradient(1.29, 1.0) < 0 and gradient(1.31, 1.0) == 0
  assert gradient(0.81, -1.0) > 0 and gradient(0.79, -1.0) == 0
  assert gradient(1.31, -1.0) > 0 and gradient(0.79, 1.0) < 0  # the pessimistic side is never cut


@pytest.mark.parametrize(("name", "hyper"), CLIPPED)
def test_finite_at_extreme_ratios(name, hyper):
  for new, old in [(-1e4, 0.0), (0.0, -1e4)]:
    for advantage in (-1.0, 0.0, 1.0):
      inputs = (jnp.full(3, new), jnp.full(3, old), advantage, jnp.ones(3, bool))
      value, gradient = jax.value_and_grad(getattr(losses, name))(*inputs, **hyper)
      assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_half_precision_inputs_are_summed_in_single():
  log_probs = jnp.full(1000, -1.0, jnp.bfloat16)
  loss = losses.policy_gradient_loss(log_probs, jnp.bfloat16(1.0), jnp.ones(1000, jnp.bfloat16))
  assert loss.dtype == jnp.float32 and loss == 1000


def test_token_entropy_bonus_is_the_sum_of_entropies(x64):
  new, _, advantage, mask = _trajectory(5)
  entropies = np.where(mask, 0.5, np.nan)
  loss = lambda x, h: losses.token_entropy_bonus_loss(x, h, advantage, mask, entropy_weight=0.1)
  want = reference.policy_gradient_loss(new, advantage, mask) - 0.1 * 0.5 * mask.sum()
  np.testing.assert_allclose(loss(jnp.asarray(new), jnp.asarray(entropies)), want, rtol=1e-12)
  np.testing.assert_allclose(
    jax.grad(loss, argnums=1)(jnp.asarray(new), jnp.asarray(entropies)), -0.1 * mask
  )


@pytest.mark.parametrize("bad", [(3, 4, 4, 4), (4, 3, 4, 4), (4, 4, 3, 4), (4, 4, 4, 3)])
def test_shapes_must_fit(bad):
  with pytest.raises(AssertionError):
    losses.ppo_clip_loss(*(jnp.ones(n) for n in bad), **CLIP)
