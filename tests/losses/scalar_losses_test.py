"""Every loss of scalars against its formula, under every transformation, at extremes, in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from qempo_jax import losses
from qempo_jax.testing import reference

CASES = [  # name, number of log-probs or rewards, number of lengths, hyper-parameters
  ("preference_loss", 4, 0, dict(alpha=0.7, beta=0.3)),
  ("qempo_loss", 2, 0, dict(alpha=0.4)),
  ("qempo_kl_loss", 4, 0, dict(quality_multiplier=3.0, kl_multiplier=0.5)),
  ("dpo_loss", 4, 0, dict(beta=0.1)),
  ("h_dpo_loss", 4, 0, dict(entropy_ratio=0.9, beta=0.2)),
  ("smoothed_dpo_loss", 4, 0, dict(beta=0.3, label_smoothing=0.1)),
  ("robust_dpo_loss", 4, 0, dict(beta=0.3, label_smoothing=0.1)),
  ("ipo_loss", 4, 0, dict(tau=0.5)),
  ("cpo_loss", 2, 0, dict(beta=0.1, nll_weight=0.05)),
  ("simpo_loss", 2, 2, dict(beta=2.0, margin=0.5)),
  ("length_normalised_preference_loss", 4, 2, dict(alpha=0.7, beta=0.3)),
  ("length_normalised_ipo_loss", 4, 2, dict(tau=0.5)),
  ("bradley_terry_loss", 3, 0, dict(centring_weight=0.01)),
]
IDS = [case[0] for case in CASES]


def _inputs(num_values, num_lengths, shape=(), seed=0, scale=5.0):
  rng = np.random.default_rng(seed)
  values = [-rng.exponential(scale, shape) for _ in range(num_values)]
  return values + [rng.integers(1, 9, shape).astype(float) for _ in range(num_lengths)]


@pytest.mark.parametrize(("name", "values", "lengths", "hyper"), CASES, ids=IDS)
def test_matches_the_formula_jitted_and_not(x64, name, values, lengths, hyper):
  loss, expected = getattr(losses, name), getattr(reference, name)
  for seed in range(4):
    inputs = _inputs(values, lengths, seed=seed)
    want = expected(*inputs, **hyper)
    np.testing.assert_allclose(loss(*inputs, **hyper), want, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(loss)(*inputs, **hyper), want, rtol=1e-12)


@pytest.mark.parametrize(("name", "values", "lengths", "hyper"), CASES, ids=IDS)
def test_vmap_and_scan_agree_with_a_loop(x64, name, values, lengths, hyper):
  loss = lambda *x: getattr(losses, name)(*x, **hyper)
  batch = [jnp.asarray(x) for x in _inputs(values, lengths, shape=(5,))]
  looped = [loss(*(x[i] for x in batch)) for i in range(5)]
  np.testing.assert_allclose(jax.vmap(loss)(*batch), looped, rtol=1e-12)
  _, scanned = jax.lax.scan(lambda carry, x: (carry, loss(*x)), 0, batch)
  np.testing.assert_allclose(scanned, looped, rtol=1e-12)


@pytest.mark.parametrize(("name", "values", "lengths", "hyper"), CASES, ids=IDS)
def test_gradients_match_finite_differences(x64, name, values, lengths, hyper):
  inputs = [jnp.asarray(x) for x in _inputs(values, lengths)]
  loss = lambda *x: getattr(losses, name)(*x, *inputs[values:], **hyper)
  check_grads(loss, inputs[:values], order=1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "values", "lengths", "hyper"), CASES, ids=IDS)
def test_finite_at_extremes_in_value_and_gradient(name, values, lengths, hyper):
  loss = jax.jit(lambda *x: getattr(losses, name)(*x, **hyper))
  gradient = jax.grad(loss, argnums=tuple(range(values)))
  for extreme in (-1e5, -1e3, 0.0):
    for other in (-1e5, 0.0):
      inputs = [jnp.float32(extreme if i % 2 else other) for i in range(values)] + [
        jnp.float32(3)
      ] * lengths
      assert np.isfinite(loss(*inputs))
      assert np.all(np.isfinite(gradient(*inputs)))


@pytest.mark.parametrize(("name", "values", "lengths", "hyper"), CASES, ids=IDS)
def test_half_precision_inputs_are_computed_in_single(name, values, lengths, hyper):
  loss = getattr(losses, name)
  half = [jnp.asarray(x, jnp.bfloat16) for x in _inputs(values, lengths)]
  result = loss(*half, **hyper)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(
    result, loss(*(x.astype(jnp.float32) for x in half), **hyper), rtol=1e-6
  )


@pytest.mark.parametrize(("name", "values", "lengths", "hyper"), CASES, ids=IDS)
def test_anything_but_scalars_is_refused(name, values, lengths, hyper):
  with pytest.raises(AssertionError):
    getattr(losses, name)(*_inputs(values, lengths, shape=(3,)), **hyper)


def test_goldens_by_hand():
  # m = 0.5 (-1 + 3) - 0.25 (-2 + 6) = 0: log 2.
  np.testing.assert_allclose(
    losses.preference_loss(-1.0, -3.0, -2.0, -6.0, alpha=0.5, beta=0.25), 0.693147, rtol=1e-5
  )
  # m = log 3: sigmoid = 3/4, loss = log(4/3).
  np.testing.assert_allclose(
    losses.qempo_loss(-1.0, -1.0 - np.log(3), alpha=1.0), 0.287682, rtol=1e-5
  )
  # alpha = 2/2, beta = 1/2: m = 1 - 1 = 0.
  np.testing.assert_allclose(
    losses.qempo_kl_loss(-1.0, -2.0, -1.0, -3.0, quality_multiplier=2.0, kl_multiplier=1.0),
    0.693147,
    rtol=1e-5,
  )
  # h = (-1 + 2) - (-4 + 3) = 2, target 1/(2 * 0.5) = 1.
  np.testing.assert_allclose(losses.ipo_loss(-1.0, -4.0, -2.0, -3.0, tau=0.5), 1.0, rtol=1e-6)
  # 2 (-4/2 + 9/3) - 2 = 0.
  np.testing.assert_allclose(
    losses.simpo_loss(-4.0, -9.0, 2, 3, beta=2.0, margin=2.0), 0.693147, rtol=1e-5
  )
  # r_w - r_l - margin = 0, centring 0.1 (3)^2.
  np.testing.assert_allclose(
    losses.bradley_terry_loss(2.0, 1.0, 1.0, centring_weight=0.1), 1.593147, rtol=1e-5
  )
  # u - z = log 3 with beta = 1: 1 - 3/4, weighted by 2; a negative KL estimate counts as 0.
  kto = dict(beta=1.0, desirable_weight=2.0, undesirable_weight=4.0)
  np.testing.assert_allclose(losses.kto_loss(np.log(3.0), 0.0, True, -1.0, **kto), 0.5, rtol=1e-5)
  np.testing.assert_allclose(losses.kto_loss(np.log(3.0), 0.0, False, -1.0, **kto), 3.0, rtol=1e-5)


def test_gradient_pushes_the_pair_apart_and_spares_the_reference():
  gradient = jax.grad(losses.preference_loss, argnums=(0, 1))(
    -2.0, -2.0, -1.0, -1.0, alpha=0.5, beta=0.2
  )
  np.testing.assert_allclose(gradient, (-0.25, 0.25), rtol=1e-6)


@pytest.mark.parametrize("desirable", [True, False])
def test_kto_in_every_way(x64, desirable):
  hyper = dict(beta=0.3, desirable_weight=1.0, undesirable_weight=1.3)
  loss = lambda x, kl: losses.kto_loss(x, -4.0, desirable, kl, **hyper)
  for kl in (-0.4, 0.6):
    np.testing.assert_allclose(
      loss(-3.0, kl), reference.kto_loss(-3.0, -4.0, desirable, kl, **hyper), rtol=1e-12
    )
    np.testing.assert_allclose(jax.jit(loss)(-3.0, kl), loss(-3.0, kl), rtol=1e-12)
    assert jax.grad(loss, argnums=1)(-3.0, kl) == 0
  check_grads(lambda x: loss(x, 0.6), (-3.0,), order=2)
  assert np.all(
    np.isfinite(jax.vmap(jax.value_and_grad(lambda x: loss(x, 0.0)))(jnp.array([-1e6, 1e6])))
  )


def test_nll_sums_response_tokens_only():
  log_probs, mask = jnp.array([-1.0, -2.0, -jnp.inf, jnp.nan]), jnp.array([1, 1, 0, 0])
  value, gradient = jax.value_and_grad(losses.nll_loss)(log_probs, mask)
  assert value == 3
  np.testing.assert_array_equal(gradient, [-1, -1, 0, 0])
  assert losses.nll_loss(log_probs, jnp.zeros(4)) == 0
  assert losses.nll_loss(log_probs.astype(jnp.bfloat16), mask).dtype == jnp.float32
  with pytest.raises(AssertionError):
    losses.nll_loss(log_probs, mask[:2])


def test_anchor_adds_to_any_pairwise_loss():
  def anchored(w):
    return losses.dpo_loss(w, -3.0, -2.0, -2.0, beta=0.1) + losses.nll_anchor(w, weight=0.2)

  plain = lambda w: losses.dpo_loss(w, -3.0, -2.0, -2.0, beta=0.1)
  np.testing.assert_allclose(jax.grad(anchored)(-2.0), jax.grad(plain)(-2.0) - 0.2, rtol=1e-6)
