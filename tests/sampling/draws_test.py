"""Draws come from the softmax, and their log-probability and entropy are those of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from qempo_jax import token_stats
from qempo_jax.sampling import draws

draw = jax.jit(draws.draw, static_argnames="block")
LOGITS = jnp.asarray([0.0, -jnp.inf, 1.0, 2.0, -1.0, 0.5, -40.0, 3.0])


def test_draws_come_from_the_softmax():
  uniform = jax.random.uniform(jax.random.key(0), (40_000,))
  drawn, _ = draw(uniform, jnp.broadcast_to(LOGITS, (40_000, 8)), block=3)
  counts = np.bincount(np.asarray(drawn), minlength=8)
  probs = np.asarray(jax.nn.softmax(LOGITS), np.float64)
  assert counts[1] == counts[6] == 0
  likely = probs > 1e-9
  assert scipy.stats.chisquare(counts[likely], counts.sum() * probs[likely] / probs[likely].sum()).pvalue > 1e-3


def test_what_has_no_probability_is_never_drawn():
  logits = np.full((3, 700), -np.inf, np.float32)
  logits[:, [3, 300, 511]] = 0.0
  assert set(draw(jnp.asarray([0.0, 0.5, 1 - 2**-24]), jnp.asarray(logits))[0].tolist()) <= {3, 300, 511}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_stats_are_those_of_the_plain_formulas(scale):
  logits = scale * jax.random.normal(jax.random.key(1), (64, 777)).at[:, 700:].set(-jnp.inf)
  token, stats = draw(jax.random.uniform(jax.random.key(2), (64,)), logits)
  exact = np.asarray(logits, np.float64)
  log_probs = exact - scipy.special.logsumexp(exact, axis=-1, keepdims=True)
  probs = np.exp(log_probs)
  np.testing.assert_allclose(stats.log_prob, log_probs[np.arange(64), token], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(stats.entropy, -np.sum(probs * np.where(probs > 0, log_probs, 0), -1), rtol=1e-5, atol=1e-5)
  plain = jax.jit(token_stats.from_logits)(logits, token)
  np.testing.assert_allclose(stats.log_prob, plain.log_prob, rtol=1e-5, atol=2e-6 * scale)
