"""Log-probability and entropy from hidden states, against SciPy on the whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from qempo_jax.token_stats import from_logits
from qempo_jax.token_stats import token_stats


@pytest.fixture
def problem():
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, unembedding = jax.random.normal(keys[0], (23, 16)), jax.random.normal(keys[1], (97, 16))
  return hidden, unembedding, jax.random.randint(keys[2], (23,), 0, 97)


@pytest.mark.parametrize("chunk_size", [1, 5, 23, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_equal_scipy(problem, chunk_size, temperature):
  hidden, unembedding, targets = problem
  logits = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T / temperature
  stats = token_stats(*problem, temperature=temperature, chunk_size=chunk_size)
  expected = scipy.special.log_softmax(logits, axis=-1)
  np.testing.assert_allclose(stats.log_prob, expected[np.arange(23), targets], atol=1e-4)
  np.testing.assert_allclose(stats.entropy, scipy.stats.entropy(np.exp(expected), axis=-1), atol=1e-4)


def test_gradients_do_not_depend_on_the_chunks(problem):
  hidden, unembedding, targets = problem

  def weighted(hidden, unembedding, chunk_size):
    stats = token_stats(hidden, unembedding, targets, temperature=0.7, chunk_size=chunk_size)
    return jnp.sum(jnp.sin(jnp.arange(23)) * stats.log_prob + stats.entropy**2)

  whole = jax.grad(weighted, (0, 1))(hidden, unembedding, 23)
  chunked = jax.grad(weighted, (0, 1))(hidden, unembedding, 4)
  for a, b in zip(whole, chunked):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_impossible_tokens_add_no_entropy_and_no_nan():
  logits = jnp.asarray([[0.0, -jnp.inf, 0.0, -jnp.inf]])
  stats = from_logits(logits, jnp.asarray([0]))
  assert float(stats.entropy[0]) == pytest.approx(np.log(2))
  gradient = jax.grad(lambda x: from_logits(jnp.where(jnp.isinf(logits), logits, x), jnp.asarray([0])).entropy[0])
  assert np.isfinite(gradient(jnp.zeros((1, 4)))).all()
