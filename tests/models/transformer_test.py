"""The decoder against PyTorch's logits for the same weights, and against itself where paths must agree."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import transformer

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


def test_logits_equal_pytorch_transformers(demo):
  golden = np.load(GOLDEN)
  forward = jax.jit(_forward, static_argnums=0)
  assert golden["lengths"].sum() >= 256
  names = ("token_ids", "logits", "logsumexp", "argmax")
  for tokens, logits, logsumexp, argmax in zip(*(_pieces(golden[name], golden["lengths"]) for name in names)):
    ours = np.asarray(forward(demo[0], demo[1], jnp.asarray(tokens)[None])[0], np.float64)
    np.testing.assert_array_equal(ours.argmax(-1), argmax)
    np.testing.assert_allclose(ours[:, golden["columns"]], logits, atol=5e-3)
    np.testing.assert_allclose(np.log(np.exp(ours).sum(-1)), logsumexp, atol=5e-3)


def test_greedy_text_equals_pytorch_transformers(demo):
  golden = np.load(GOLDEN)
  prompts = _pieces(golden["prompt_ids"], golden["prompt_lengths"])
  answers = _pieces(golden["greedy_ids"], golden["greedy_lengths"])
  config, params = demo
  longest, steps = max(map(len, prompts)), max(map(len, answers))
  decode, decoder = jax.jit(transformer.decode, static_argnums=1), transformer.for_decoding(params, config, longest + steps)
  mask = jnp.asarray([[place >= longest - len(prompt) for place in range(longest)] for prompt in prompts])
  tokens = jnp.asarray([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
  hidden, keys, values = transformer.prefill(params, config, tokens, mask)
  cache = transformer.KVCache.create(keys, values, mask, group_size=1, max_length=steps)
  hidden, ours = hidden[:, None], []
  for _ in range(steps):
    ours.append(jnp.argmax(hidden @ params["embedding"].T, axis=-1))
    hidden, cache = decode(decoder, config, ours[-1], cache)
  for row, answer in enumerate(answers):
    assert [int(step[row, 0]) for step in ours[: len(answer)]] == list(answer)
  with pytest.raises(ValueError, match="room for"):
    decode(transformer.for_decoding(params, config, longest), config, ours[-1], cache)
