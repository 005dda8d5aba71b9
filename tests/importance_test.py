"""Weights of samples that another policy drew: exact expectations on a set that can be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import importance


def _policies():
  rng = np.random.default_rng(0)
  old, new = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=7), jnp.float32)) for _ in range(2))
  return old, new


def test_weighted_gradients_of_old_samples_are_those_of_new_ones():
  """Summed over all responses with the old policy's probabilities, which is what many samples of it would give."""
  old, new = _policies()
  rewards = jnp.arange(7.0)
  log_probs = lambda logits: jax.nn.log_softmax(logits)

  def surrogate(logits, drawn_from):
    weight = importance.weights(log_probs(logits), drawn_from, max_weight=jnp.inf)
    return jnp.sum(jnp.exp(drawn_from) * weight * rewards * log_probs(logits))

  weighted = jax.grad(surrogate)(new, old)
  unweighted = jax.grad(lambda logits: jnp.sum(jnp.exp(old) * rewards * log_probs(logits)))(new)
  exact = jax.grad(lambda logits: jnp.sum(jax.nn.softmax(logits) * rewards))(new)
  np.testing.assert_allclose(weighted, exact, rtol=1e-5, atol=1e-6)
  assert np.abs(unweighted - exact).max() > 0.1


def test_weights_are_cut_detached_and_finite():
  own, drawn = jnp.array([0.0, -1.0, -200.0, 0.0]), jnp.array([-200.0, -1.0, 0.0, jnp.nan])
  value, slope = jax.value_and_grad(lambda x: jnp.sum(importance.weights(x, drawn, max_weight=2.0)))(own)
  np.testing.assert_allclose(importance.weights(own, drawn, max_weight=2.0)[:3], [2.0, 1.0, 0.0])
  assert jnp.isnan(value) and not slope.any()  # a broken sample is not hidden


@pytest.mark.parametrize(("weights", "share"), [([1.0, 1.0, 1.0, 9.0], 1.0), ([3.0, 0.0, 0.0, 9.0], 1 / 3)])
def test_the_effective_share_leaves_out_what_is_not_fresh(weights, share):
  fresh = jnp.array([True, True, True, False])
  np.testing.assert_allclose(importance.effective_share(jnp.array(weights), fresh), share)


def test_weighted_means_are_those_of_the_new_policy():
  old, new = _policies()
  rng = np.random.default_rng(1)
  drawn = rng.choice(7, size=200_000, p=np.exp(old) / np.exp(old).sum())
  weights = importance.weights(new[drawn], old[drawn], max_weight=jnp.inf)
  found = importance.mean(jnp.asarray(drawn, jnp.float32), weights, jnp.ones(len(drawn), bool))
  exact = float(jnp.sum(jnp.exp(new) * jnp.arange(7)))
  spread = float(jnp.std(weights * (drawn - exact))) / len(drawn) ** 0.5
  assert abs(found - exact) < 4 * spread < abs(drawn.mean() - exact)
