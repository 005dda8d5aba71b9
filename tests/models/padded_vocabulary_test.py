"""Rows of the embedding beyond the tokenizer's tokens give nothing to any distribution, value or gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax.errors import InputError
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch
from tests import scored

PLAIN = ModelConfig(21, 16, 24, 1, 2, 1, 8, 100.0, 1e-5, False)
PADDED = dataclasses.replace(PLAIN, vocab_size=32, num_tokens=21)


def _params():
  plain = transformer.init(jax.random.key(0), PLAIN, stddev=0.3)
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


def test_more_tokens_than_rows_are_refused():
  with pytest.raises(InputError, match="num_tokens=22 does not fit vocab_size=21"):
    dataclasses.replace(PLAIN, num_tokens=22)
