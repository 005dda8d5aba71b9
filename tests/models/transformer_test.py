"""The decoder against PyTorch's logits for the same weights, and against itself where paths must agree."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import conversion
from qempo_jax.models import decoding
from qempo_jax.models import demo_model
from qempo_jax.models import kv_cache
from qempo_jax.models import parameters
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "smollm2_logits.npz"


@pytest.fixture(scope="module")
def demo():
  config, params = conversion.load(demo_model.demo_model_path())
  return config, jax.tree.map(jnp.asarray, params)


def _pieces(flat, lengths):
  return np.split(flat, np.cumsum(lengths)[:-1])


def _forward(config, params, tokens):
  positions = jnp.arange(tokens.shape[1])[None]
  mask = transformer.causal_mask(positions, jnp.ones_like(tokens, bool))
  hidden = transformer.forward(params, config, tokens, positions, mask, remat=False)
  return hidden @ transformer.unembedding(params).T


@pytest.mark.slow  # reads 93 MB; `families_test` has the same of small decoders
def test_logits_equal_pytorch_transformers(demo):
  golden = np.load(GOLDEN)
  forward = jax.jit(_forward, static_argnums=0)
  assert golden["lengths"].sum() >= 256
  names = ("token_ids", "logits", "logsumexp", "argmax")
  longest = int(golden["lengths"].max())
  for tokens, logits, logsumexp, argmax in zip(*(_pieces(golden[name], golden["lengths"]) for name in names)):
    filled = jnp.asarray(np.pad(tokens, (0, longest - len(tokens))))  # which no token before it sees
    ours = np.asarray(forward(demo[0], demo[1], filled[None])[0, : len(tokens)], np.float64)
    np.testing.assert_array_equal(ours.argmax(-1), argmax)
    np.testing.assert_allclose(ours[:, golden["columns"]], logits, atol=5e-3)
    np.testing.assert_allclose(np.log(np.exp(ours).sum(-1)), logsumexp, atol=5e-3)


@pytest.mark.slow  # likewise
def test_greedy_text_equals_pytorch_transformers(demo):
  golden = np.load(GOLDEN)
  prompts = _pieces(golden["prompt_ids"], golden["prompt_lengths"])
  answers = _pieces(golden["greedy_ids"], golden["greedy_lengths"])
  config, params = demo
  longest, steps = max(map(len, prompts)), max(map(len, answers))
  decode, decoder = (
    jax.jit(decoding.decode, static_argnums=1),
    decoding.for_decoding(params, config, longest + steps),
  )
  mask = jnp.asarray([[place >= longest - len(prompt) for place in range(longest)] for prompt in prompts])
  tokens = jnp.asarray([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
  hidden, prompts = jax.jit(decoding.prefill, static_argnums=1)(params, config, tokens, mask)
  cache = kv_cache.KVCache.create(prompts, mask, config, group_size=1, max_length=steps)
  hidden, ours = hidden[:, None], []
  best = jax.jit(lambda hidden, embedding: jnp.argmax(hidden @ embedding.T, axis=-1))
  for _ in range(steps):
    ours.append(best(hidden, params["embedding"]))
    hidden, cache = decode(decoder, config, ours[-1], cache)
  for row, answer in enumerate(answers):
    assert [int(step[row, 0]) for step in ours[: len(answer)]] == list(answer)


def test_a_decoder_made_for_shorter_sequences_is_refused():
  config = ModelConfig(16, 16, 24, 1, 2, 1, 8, 100.0, 1e-5, True)

  def decode(length):
    params, tokens = parameters.init(jax.random.key(0), config), jnp.zeros((1, 3), int)
    _, prompts = decoding.prefill(params, config, tokens, tokens == 0)
    cache = kv_cache.KVCache.create(prompts, tokens == 0, config, group_size=1, max_length=2)
    return decoding.decode(decoding.for_decoding(params, config, length), config, tokens[:, :1], cache)

  jax.eval_shape(lambda: decode(5))
  with pytest.raises(ValueError, match="the cache holds 5"):
    jax.eval_shape(lambda: decode(3))
