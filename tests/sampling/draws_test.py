"""Draws come from the softmax, and their log-probability and entropy are those of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from qempo_jax import token_stats
from qempo_jax.sampling import draws

draw = jax.jit(draws.draw, static_argnames="block")
shares = jax.jit(draws.shares)
LAST = 2**32 - 1  # the largest random number
LOGITS = jnp.asarray([0.0, -jnp.inf, 1.0, 2.0, -1.0, 0.5, -40.0, 3.0])


def test_draws_come_from_the_softmax():
  bits = jax.random.bits(jax.random.key(0), (40_000, 2), jnp.uint32)
  drawn, _ = draw(bits, jnp.broadcast_to(LOGITS, (40_000, 8)), block=3)
  counts = np.bincount(np.asarray(drawn), minlength=8)
  probs = np.asarray(jax.nn.softmax(LOGITS), np.float64)
  assert counts[1] == counts[6] == 0
  likely = probs > 1e-9
  assert scipy.stats.chisquare(counts[likely], counts.sum() * probs[likely] / probs[likely].sum()).pvalue > 1e-3


def test_what_has_no_probability_is_never_drawn():
  logits = np.full((3, 700), -np.inf, np.float32)
  logits[:, [3, 300, 511]] = 0.0
  bits = jnp.asarray([[0, 0], [2**31 - 1, 2**31 - 1], [LAST, LAST]], jnp.uint32)
  assert draw(bits, jnp.asarray(logits))[0].tolist() == [3, 300, 511]


def test_the_least_random_number_draws_no_unlikely_first_token():
  logits = np.full(600, -60.0, np.float32)
  logits[[40, 590]] = 0.0
  assert draw(jnp.zeros((1, 2), jnp.uint32), jnp.asarray(logits[None]))[0].tolist() == [40]


def test_shares_rise_only_where_there_is_mass():
  """In 594 blocks, of which a third have no mass or next to none: float32 sums of trees rise and fall there."""
  rng = np.random.default_rng(0)
  masses = rng.exponential(size=(200, 594)).astype(np.float32)
  masses[:, ::3] = rng.choice([0.0, 1e-12], size=(200, 198))
  steps = np.diff(np.asarray(shares(masses)), prepend=0, axis=-1)
  assert not steps[:, ::3].any() and (steps >= 0).all()


def test_bits_are_scaled_as_whole_numbers():
  count = np.asarray([1, 7, 2**30 - 1, 2**30 + 12345, 2**31 - 1], np.int32)
  bits = np.random.default_rng(0).integers(0, LAST, (100, 1), np.uint32, endpoint=True)
  bits[:2, 0] = 0, LAST
  exact = bits.astype(object) * count.astype(object) // 2**32
  np.testing.assert_array_equal(jax.jit(draws._scaled)(bits, count), exact.astype(np.int64))


def _probabilities(masses):
  """The probability of each index under `pick`, by counting random numbers: [..., N]."""
  ends = np.asarray(shares(masses), np.int64)
  first = -(-ends * 2**32 // ends[..., -1:])  # least number that draws a later index
  return np.diff(first.astype(np.float64), prepend=0, axis=-1) / 2**32


def test_the_distance_from_what_is_scored_is_below_2e_7():
  """Exactly; 1.1e-3 with one float32 uniform of 23 bits and float32 sums, and 6.4e-5 of the mass then never drawn."""
  logits = 2 * np.random.default_rng(0).normal(size=49152)
  weights = np.exp(logits - logits.max()).astype(np.float32).reshape(-1, 256)
  drawn = (_probabilities(weights.sum(-1))[:, None] * _probabilities(weights)).reshape(-1)
  probs = scipy.special.softmax(logits)
  assert np.abs(drawn - probs).sum() / 2 < 2e-7 and drawn.sum() == pytest.approx(1, abs=1e-12)
  assert probs[drawn == 0].sum() < 1e-9


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_stats_are_those_of_the_plain_formulas(scale):
  logits = scale * jax.random.normal(jax.random.key(1), (64, 777)).at[:, 700:].set(-jnp.inf)
  token, stats = draw(jax.random.bits(jax.random.key(2), (64, 2), jnp.uint32), logits)
  exact = np.asarray(logits, np.float64)
  log_probs = exact - scipy.special.logsumexp(exact, axis=-1, keepdims=True)
  probs = np.exp(log_probs)
  np.testing.assert_allclose(stats.log_prob, log_probs[np.arange(64), token], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    stats.entropy, -np.sum(probs * np.where(probs > 0, log_probs, 0), -1), rtol=1e-5, atol=1e-5
  )
  plain = jax.jit(token_stats.from_logits)(logits, token)
  np.testing.assert_allclose(stats.log_prob, plain.log_prob, rtol=1e-5, atol=2e-6 * scale)
