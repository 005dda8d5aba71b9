"""The family of objectives: conversions, the closed form, and its symmetries."""

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import family

Y = 5
vectors = strategies.lists(strategies.floats(-3, 3), min_size=Y, max_size=Y).map(np.asarray)
weights = strategies.floats(0.05, 5)
quick = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def entropy(log_probs):
  return -np.sum(np.exp(log_probs) * np.asarray(log_probs))


@quick
@hypothesis.given(quality=strategies.floats(0.1, 50), kl=strategies.floats(0, 50))
def test_conversions_are_inverse_to_each_other(quality, kl):
  with jax.enable_x64(True):
    alpha, beta = family.weights_from_multipliers(quality, kl)
    np.testing.assert_allclose([alpha, beta], [(1 + kl) / quality, kl / quality], rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(family.multipliers_from_weights(alpha, beta), [quality, kl], rtol=1e-10, atol=1e-12)


def test_conversions_at_the_edges():
  assert family.weights_from_multipliers(2.0, 0.0) == (0.5, 0.0)  # QEMPO
  assert family.weights_from_multipliers(0.0, 0.0) == (np.inf, 0.0)  # no floor: nothing but entropy
  assert family.multipliers_from_weights(0.5, 0.5) == (np.inf, np.inf)  # RLHF
  assert family.multipliers_from_weights(4, 2) == (0.5, 1.0)  # integers are numbers too


@pytest.mark.parametrize(
  "convert, at",
  [(family.weights_from_multipliers, (2.0, 0.0)), (family.multipliers_from_weights, (1.5, 0.0))],
)
def test_conversions_have_the_right_derivatives(x64, convert, at):
  stacked = jax.jit(lambda x: jnp.stack(convert(*x)))
  at, steps = jnp.asarray(at), 1e-6 * jnp.eye(2)
  finite = np.stack([stacked(at + step) - stacked(at - step) for step in steps], axis=1) / 2e-6
  np.testing.assert_allclose(jax.jit(jax.jacrev(stacked))(at), finite, rtol=1e-6)


@quick
@hypothesis.given(rewards=vectors, logits=vectors, alpha=weights, beta=weights)
def test_target_is_the_stationary_point_of_the_objective(rewards, logits, alpha, beta):
  with jax.enable_x64(True):
    ref = jax.nn.log_softmax(jnp.asarray(logits))

    def objective(policy_logits):
      log_probs = jax.nn.log_softmax(policy_logits)
      return jnp.exp(log_probs) @ (rewards - alpha * log_probs + beta * ref)

    target = family.target_log_probs(rewards, ref, alpha=alpha, beta=beta)
    np.testing.assert_allclose(jax.grad(objective)(target), 0, atol=1e-11)
    np.testing.assert_allclose(jax.nn.logsumexp(target), 0, atol=1e-12)


@quick
@hypothesis.given(rewards=vectors, logits=vectors, alpha=weights, beta=weights, constant=strategies.floats(-9, 9))
def test_target_symmetries(rewards, logits, alpha, beta, constant):
  with jax.enable_x64(True):
    ref = jax.nn.log_softmax(jnp.asarray(logits))
    target = family.target_log_probs(rewards, ref, alpha=alpha, beta=beta)
    shifted = family.target_log_probs(rewards + constant, ref, alpha=alpha, beta=beta)
    np.testing.assert_allclose(shifted, target, atol=1e-10)
    scaled = family.target_log_probs(3 * rewards, ref, alpha=3 * alpha, beta=3 * beta)
    np.testing.assert_allclose(scaled, target, atol=1e-10)
    order = np.array([3, 1, 4, 0, 2])
    permuted = family.target_log_probs(rewards[order], ref[order], alpha=alpha, beta=beta)
    np.testing.assert_allclose(permuted, target[order], atol=1e-12)


def test_multiplier_form_is_the_weight_form_at_translated_weights(x64):
  rng = np.random.default_rng(0)
  rewards, ref = rng.normal(size=(4, 30)), jax.nn.log_softmax(jnp.asarray(rng.normal(size=(4, 30))))
  quality, kl = rng.uniform(0.1, 20, 4), rng.uniform(0, 9, 4)
  translated = family.weights_from_multipliers(quality, kl)
  by_weights = family.target_log_probs(rewards, ref, alpha=translated.alpha, beta=translated.beta)
  by_multipliers = family.multiplier_target_log_probs(rewards, ref, quality=quality, kl=kl)
  np.testing.assert_allclose(by_multipliers, by_weights, atol=1e-12)
  one = family.target_log_probs(rewards[2], ref[2], alpha=translated.alpha[2], beta=translated.beta[2])
  np.testing.assert_allclose(by_weights[2], one, atol=1e-14)
  no_floor = family.multiplier_target_log_probs(rewards[0], ref[0], quality=0.0, kl=0.0)
  np.testing.assert_allclose(no_floor, -np.log(30), atol=1e-12)


def test_entropy_order_reverses_at_matched_temperature():
  rewards, ref, beta = jnp.array([1, 0.5, 0]), jnp.log(jnp.array([0.05, 0.25, 0.70])), 0.5
  without_ref = family.target_log_probs(rewards, ref, alpha=beta, beta=0.0)
  with_ref = family.target_log_probs(rewards, ref, alpha=beta, beta=beta)
  assert round(entropy(without_ref), 3) == 0.832
  assert round(entropy(with_ref), 3) == 1.062


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_responses_outside_the_set(beta):
  rewards, ref = (
    jnp.array([1.0, 2.0, 50.0, jnp.nan]),
    jnp.array([jnp.log(0.25), jnp.log(0.75), -jnp.inf, -jnp.inf]),
  )
  target = family.target_log_probs(rewards, ref, alpha=0.5, beta=beta)
  inner = family.target_log_probs(rewards[:2], ref[:2], alpha=0.5, beta=beta)
  np.testing.assert_allclose(target[:2], inner, rtol=1e-6)
  assert (target[2:] == -jnp.inf).all()
  gradients = jax.grad(lambda r, q, a, b: family.target_log_probs(r, q, alpha=a, beta=b)[0], argnums=(0, 1, 2, 3))(
    rewards, ref, 0.5, beta
  )
  assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_jit_vmap_and_dtype():
  rewards, ref = jnp.ones((3, 4), jnp.bfloat16), jnp.full((3, 4), -jnp.log(4.0))
  target = jax.jit(jax.vmap(lambda r, q, a: family.target_log_probs(r, q, alpha=a, beta=0.1)))(
    rewards, ref, jnp.array([0.1, 1.0, 10.0])
  )
  assert target.dtype == jnp.float32
  np.testing.assert_allclose(target, -np.log(4), rtol=1e-6)


def test_shapes_must_agree():
  with pytest.raises(AssertionError):
    family.target_log_probs(jnp.zeros(3), jnp.zeros(4), alpha=1.0, beta=0.0)
