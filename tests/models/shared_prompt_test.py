"""Prompts computed once for their group: the values and gradients of dense rows, and of every sequence alone."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.models import attention
from qempo_jax.models import conversion
from qempo_jax.models import layers
from qempo_jax.models import shared_prompt
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families"
# Between them: windows, soft-caps, norms of queries and keys, biases, two rotary bases, one key head for several.
FAMILIES = ("gemma2", "gemma3", "llama_biases", "olmo2")
CONFIG = ModelConfig(50, 16, 24, 2, 4, 2, 8, 100.0, 1e-5, True)


def slow(*case):
  return pytest.param(*case, marks=pytest.mark.slow)


def _groups(vocab_size, group_size, longest, seed=0):
  """Three prompts of uneven lengths, with uneven groups: empty responses, single tokens, and the longest."""
  rng = np.random.default_rng(seed)
  prompts = [rng.integers(3, vocab_size, length).tolist() for length in (5, 11, 2)]
  lengths = rng.integers(0, longest + 1, (3, group_size))
  lengths[0, :2], lengths[1, -1], lengths[2, 0] = (0, 1), longest, longest
  return prompts, [[rng.integers(3, vocab_size, n).tolist() for n in row] for row in lengths]


def _dense(params, config, packed):
  mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
  return transformer.forward(params, config, packed.tokens, packed.positions, mask)


def _assert_same(config, params, packed, *, relative=2e-5):
  """Hidden states of real places, and the gradient of a function of them, equal those of dense masked rows."""
  real = (packed.segments >= 0)[:, :, None]
  weights = jax.random.normal(jax.random.key(5), (*packed.tokens.shape, config.hidden_size))

  @functools.partial(jax.jit, static_argnums=0)
  def both(forward, params):
    def loss(params):
      hidden = jnp.where(real, forward(params, config, packed), 0)
      return jnp.sum(weights * jnp.sin(hidden)), hidden

    return jax.grad(loss, has_aux=True)(params)

  gradient, hidden = both(transformer.forward_groups, params)
  expected_gradient, expected = both(_dense, params)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=relative * max(1e-3, float(np.abs(b).max())))
  near(hidden, expected)
  jax.tree.map(near, gradient, expected_gradient)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prompts_per_row"), [*((name, 1) for name in FAMILIES), ("gemma3", 3)])
def test_families_equal_their_dense_rows(name, prompts_per_row):
  config, params = conversion.load(GOLDEN / name)
  params = jax.tree.map(jnp.asarray, params)
  packed = packing.pack_groups(*_groups(config.vocab_size, 6, 9), bucket=4, prompts_per_row=prompts_per_row)
  assert packed.segments.shape[1] - packed.layout.prompt > 3 * packed.layout.chunk  # many chunks
  _assert_same(config, params, packed)


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [1, 3, 64])
def test_any_chunks_equal_dense_rows(bucket):
  params = transformer.init(jax.random.key(0), CONFIG, stddev=0.3)
  _assert_same(CONFIG, params, packing.pack_groups(*_groups(50, 7, 10, seed=bucket), bucket=bucket))


@pytest.mark.parametrize(("window", "softcap", "prompts_per_row"), [(None, None, 3), (3, 2.0, 1), slow(12, None, 3)])
def test_kernels_with_joined_keys_equal_dense_attention(window, softcap, prompts_per_row):
  config = dataclasses.replace(CONFIG, attention_softcap=softcap)
  packed = packing.pack_groups(*_groups(50, 6, 9), bucket=4, prompts_per_row=prompts_per_row)
  rng = np.random.default_rng(1)
  draw = lambda heads: jnp.asarray(rng.normal(size=(*packed.tokens.shape, heads, 8)), jnp.float32)
  arrays = draw(4), draw(2), draw(2)
  queries, keys = packed.positions[:, :, None], packed.positions[:, None, :]
  mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
  mask = shared_prompt.within_window(mask, queries, keys, window)
  real = (packed.segments >= 0)[:, :, None, None]
  expected = jnp.where(real, attention.attention(*arrays, mask, config), 0)
  for joined in (None, layers.attention):
    attend = lambda *arrays, joined=joined: shared_prompt.by_parts(
      *arrays, packed, config, window=window, joined=joined
    )
    ours = jax.jit(attend)(*arrays)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(jnp.where(real, ours, 0), expected, atol=1e-5)


@pytest.mark.parametrize(("bucket", "prompts_per_row"), [slow(1, 1), (4, 3)])
def test_the_gradient_is_the_sum_over_sequences_alone(bucket, prompts_per_row):
  """Every response after a prompt of its own, unpacked, by a forward that knows nothing of groups."""
  config = dataclasses.replace(CONFIG, windows=(None, 4), attention_softcap=3.0)
  params = transformer.init(jax.random.key(0), CONFIG, stddev=0.3)
  prompts, responses = _groups(50, 4, 6)
  packed = packing.pack_groups(prompts, responses, bucket=bucket, prompts_per_row=prompts_per_row)
  weights = np.fromfunction(lambda p, g, t: np.sin(1.0 + p + 3 * g + 7 * t), (3, 4, 6))

  def packed_loss(params):
    stats = scoring.score_groups(params, config, packed, group_size=4, max_length=6, temperature=0.7, chunk_size=9)
    return jnp.sum(weights * stats.log_prob) + jnp.sum(weights**2 * stats.entropy)

  tokens, weight = np.zeros((12, 17), int), np.zeros((12, 16))
  for row, (p, g) in enumerate(np.ndindex(3, 4)):
    start, response = len(prompts[p]), responses[p][g]
    tokens[row, : start + len(response)] = prompts[p] + response
    weight[row, start - 1 : start - 1 + len(response)] = weights[p, g, : len(response)]

  def plain_loss(params):
    positions = jnp.broadcast_to(jnp.arange(17), tokens.shape)
    mask = transformer.causal_mask(positions, jnp.ones(tokens.shape, bool))
    hidden = transformer.forward(params, config, tokens, positions, mask, remat=False)[:, :-1]
    log_probs = jax.nn.log_softmax(hidden @ params["embedding"].T / 0.7)
    chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(weight * chosen) - jnp.sum(weight**2 * jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1))

  ours, gradient = jax.jit(jax.value_and_grad(packed_loss))(params)
  expected, expected_gradient = jax.jit(jax.value_and_grad(plain_loss))(params)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(np.abs(b).max()))
  jax.tree.map(near, gradient, expected_gradient)


def test_scores_take_the_places_of_the_group_not_their_square():
  """Temporary memory of forward and backward grows in proportion to the group."""
  config = dataclasses.replace(CONFIG, num_layers=1, remat="none")

  def temporary(group_size):
    packed = packing.pack_groups([[1] * 64], [[[2] * 17] * group_size], bucket=16)
    loss = lambda params: jnp.sum(transformer.forward_groups(params, config, packed)[0] ** 2)
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

  small, large = temporary(32), temporary(128)
  assert large < 5 * small
