"""Rows of the embedding beyond the tokenizer's tokens give nothing to any distribution, value or gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax import token_stats
from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch
from tests import scored

PLAIN = ModelConfig(21, 16, 24, 1, 2, 1, 8, 100.0, 1e-5, False)
PADDED = dataclasses.replace(PLAIN, vocab_size=32, num_tokens=21)


def _params():
  plain = parameters.init(jax.random.key(0), PLAIN, stddev=0.3)
  extra = 3.0 * jax.random.normal(jax.random.key(1), (11, 16))  # large: unmasked, they would win
  padded = plain | {name: jnp.concatenate([plain[name], extra]) for name in ("embedding", "unembedding")}
  return plain, padded


def _stats(params, config):
  rng = np.random.default_rng(0)
  responses = [[rng.integers(0, 21, 4) for _ in range(3)] for _ in range(2)]
  packed = packing.pack_groups([[1, 2, 3], [4, 20]], responses, bucket=16)
  return scored.score_groups(params, config, packed, group_size=3, max_length=4, temperature=0.7, chunk_size=8)


@pytest.mark.parametrize("softcap", [pytest.param(None, marks=pytest.mark.slow), 3.0])
def test_values_and_gradients_are_those_of_the_unpadded_vocabulary(softcap):
  plain, padded = _params()
  small, large = (dataclasses.replace(config, logit_softcap=softcap) for config in (PLAIN, PADDED))

  def total(params, config):
    stats = _stats(params, config)
    return sum(map(jnp.sum, stats)), stats

  gradient = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
  (of_plain, expected), (of_padded, ours) = gradient(plain, small), gradient(padded, large)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, expected)
  for name in ("embedding", "unembedding"):
    np.testing.assert_array_equal(of_padded[name][21:], 0)
    of_padded[name] = of_padded[name][:21]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), of_padded, of_plain)


def test_the_sampler_never_draws_padding_and_draws_as_without_it():
  plain, padded = _params()
  prompts = PromptBatch(jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool))
  draw = lambda params, config: sampler.sample_groups(
    params, config, prompts, jax.random.key(3), group_size=64, max_length=4, temperature=1.0, stop_tokens=(0,)
  )
  ours, expected = draw(padded, PADDED), draw(plain, PLAIN)
  np.testing.assert_array_equal(ours.tokens, expected.tokens)
  np.testing.assert_allclose(ours.entropies, expected.entropies, rtol=1e-6, atol=1e-6)


def test_sampler_and_scorer_leave_forbidden_tokens_out_alike():
  """Both against a vocabulary whose forbidden rows are cut out."""
  plain, _ = _params()
  config, kept = dataclasses.replace(PLAIN, forbidden=(3, 20)), np.delete(np.arange(21), (3, 20))
  prompts = PromptBatch(jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool))
  drawn = sampler.sample_groups(
    plain, config, prompts, jax.random.key(3), group_size=64, max_length=4, temperature=0.7, stop_tokens=(0,)
  )
  assert not np.isin(drawn.tokens[drawn.mask], config.forbidden).any()
  responses = [np.asarray(tokens)[np.asarray(mask)] for tokens, mask in zip(drawn.tokens[0], drawn.mask[0])]
  packed = packing.pack_groups([[1, 2, 3]], [responses], bucket=16)
  scores = scored.score_groups(plain, config, packed, group_size=64, max_length=4, temperature=0.7, chunk_size=8)
  np.testing.assert_allclose(scores.log_prob, drawn.log_probs, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(scores.entropy, drawn.entropies, rtol=1e-5, atol=1e-5)

  hidden = jax.random.normal(jax.random.key(5), (9, 16))
  rows, targets = jax.random.normal(jax.random.key(6), (21, 16)), jnp.arange(9) % 19

  def of(hidden, rows, targets, forbidden):
    stats = token_stats.token_stats(
      hidden, rows, targets, temperature=0.7, chunk_size=4, max_logits=20, forbidden=forbidden
    )
    return jnp.sum(jnp.sin(jnp.arange(9)) * stats.log_prob + stats.entropy**2), stats

  gradient = jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True), static_argnums=3)
  (_, ours), (d_hidden, d_rows) = gradient(hidden, rows, jnp.asarray(kept)[targets], (3, 20))
  (_, cut), (of_hidden, of_rows) = gradient(hidden, rows[kept], targets, ())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    (ours, d_hidden, d_rows[kept]),
    (cut, of_hidden, of_rows),
  )
  np.testing.assert_array_equal(d_rows[np.array([3, 20])], 0)


def test_a_forbidden_target_has_no_probability():
  arrays = jnp.ones((2, 16)), jnp.ones((21, 16)), jnp.asarray([3, 4])
  stats = token_stats.token_stats(*arrays, temperature=1.0, chunk_size=2, forbidden=(3,))
  np.testing.assert_allclose(stats.log_prob, [-np.inf, -np.log(20)], rtol=1e-6)
  with pytest.raises(InputError, match="forbidden names token 21"):
    dataclasses.replace(PLAIN, forbidden=(21,))


def test_more_tokens_than_rows_are_refused():
  with pytest.raises(InputError, match="num_tokens=22 does not fit vocab_size=21"):
    dataclasses.replace(PLAIN, num_tokens=22)
