"""Prompts computed once for their group: the values and gradients of dense rows, and of every sequence alone."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attention_memory
from experiments.compile.jaxprs import largest
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import attention
from qempo_jax.models import blockwise
from qempo_jax.models import conversion
from qempo_jax.models import layers
from qempo_jax.models import parameters
from qempo_jax.models import positions
from qempo_jax.models import shared_prompt
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families"
# Between them: windows, soft-caps, norms of queries and keys, biases, two rotary bases, one key head for several.
FAMILIES = ("gemma2", "gemma3", "gpt_oss", "llama_biases", "olmo2")
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

  gradient, hidden = both(lambda *of: transformer.forward_groups(*of)[0], params)
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
  params = parameters.init(jax.random.key(0), CONFIG, stddev=0.3)
  _assert_same(CONFIG, params, packing.pack_groups(*_groups(50, 7, 10, seed=bucket), bucket=bucket))


def _causal(q, k, v, config, window):
  """A kernel without a mask."""
  place = jnp.arange(q.shape[1])
  mask = positions.within_window(place <= place[:, None], place[:, None], place, window)
  return layers.attention(q, k, v, jnp.broadcast_to(mask, (len(q), *mask.shape)), config)


def _values_and_gradients(attend, packed, arrays):
  """Of real places alone, of a function of them."""
  real = (packed.segments >= 0)[:, :, None, None]
  weights = jnp.asarray(np.random.default_rng(2).normal(size=arrays[0].shape), arrays[0].dtype)

  def loss(*arrays):
    attended = attend(*arrays)
    return jnp.sum(weights * jnp.sin(jnp.where(real, attended, 0))), attended

  gradient, attended = jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)
  assert np.isfinite(attended).all()
  return jnp.where(real, attended, 0), gradient


def _draw(packed, dtype, width=8):
  rng = np.random.default_rng(1)
  return [jnp.asarray(rng.normal(size=(*packed.tokens.shape, heads, width)), dtype) for heads in (4, 2, 2)]


CASES = [(None, None, 3, 4), (3, 2.0, 1, 4), slow(12, None, 3, 4), slow(5, None, 1, 1)]


@pytest.mark.parametrize(("window", "softcap", "prompts_per_row", "bucket"), CASES)
@pytest.mark.parametrize("dtype", [slow("float32"), "float64"])
def test_every_way_equals_dense_attention(window, softcap, prompts_per_row, bucket, dtype):
  with jax.enable_x64(dtype == "float64"):
    config = dataclasses.replace(CONFIG, attention_softcap=softcap, windows=(None, window) if window else ())
    packed = packing.pack_groups(*_groups(50, 6, 9), bucket=bucket, prompts_per_row=prompts_per_row)
    arrays = _draw(packed, dtype)
    mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
    mask = positions.within_window(mask, packed.positions[:, :, None], packed.positions[:, None, :], window)
    expected = _values_and_gradients(lambda *arrays: attention.attention(*arrays, mask, config), packed, arrays)
    at = None if window is None else jnp.int32(window)
    places = positions.places(jax.tree.map(jnp.asarray, packed), at)
    uneven = packed.replace(layout=packed.layout._replace(chunk=7))
    ways = {
      "apart": lambda *arrays: shared_prompt.by_parts(*arrays, packed, config, window=at),
      "together": lambda *arrays: shared_prompt.by_parts(*arrays, uneven, config, window=at, joined=layers.attention),
      "by responses": lambda *arrays: shared_prompt.by_responses(*arrays, packed, config, window=at, kernel=_causal),
      "blocks": lambda *arrays: blockwise.attention(*arrays, places, config, responses=6, block=5),
    }
    tolerance = 1e-5 if dtype == "float32" else 1e-10
    for name, way in ways.items():
      ours = _values_and_gradients(way, packed, arrays)
      near = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)  # noqa: B023
      jax.tree.map(near, ours, expected)


def _with_sinks(packed, dtype):
  """Queries, keys, values and sinks."""
  return [*_draw(packed, dtype), jnp.array([-2.0, 0.3, 1.5, 4.0], dtype)]


def test_sinks_are_the_same_in_every_way():
  with jax.enable_x64(True):
    config = dataclasses.replace(CONFIG, attention_softcap=2.0, attention_sinks=True)
    packed = packing.pack_groups(*_groups(50, 6, 9), bucket=4, prompts_per_row=3)
    arrays = _with_sinks(packed, "float64")
    mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
    places = positions.places(jax.tree.map(jnp.asarray, packed), None)
    ways = {
      "dense": lambda q, k, v, sinks: attention.attention(q, k, v, mask, config, sinks),
      "apart": lambda q, k, v, sinks: shared_prompt.by_parts(q, k, v, packed, config, sinks_H=sinks),
      "blocks": lambda q, k, v, sinks: blockwise.attention(
        q, k, v, places, config, responses=6, block=5, sinks_H=sinks
      ),
      "chosen": lambda q, k, v, sinks: shared_prompt.attender(packed, config)(q, k, v, None, sinks),
    }
    expected, *others = (_values_and_gradients(way, packed, arrays) for way in ways.values())
    assert np.abs(expected[1][3]).min() > 1e-3
    for name, ours in zip(list(ways)[1:], others):
      near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=name)  # noqa: B023
      jax.tree.map(near, ours, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), slow((2, 1, 2, 2))])
def test_a_ring_of_devices_equals_one(shape):
  packed = packing.pack_groups(*_groups(50, 4, 9), bucket=4)
  packed = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), packed)
  places = positions.places(jax.tree.map(jnp.asarray, packed), jnp.int32(6))
  attend = lambda q, k, v, s: blockwise.attention(q, k, v, places, CONFIG, responses=4, block=4, sinks_H=s)
  arrays = _with_sinks(packed, "float32")
  expected = _values_and_gradients(attend, packed, arrays)
  mesh = sharding.make_mesh(shape, devices=jax.devices()[: np.prod(shape)])
  arrays = [*jax.device_put(arrays[:3], sharding.batch_sharding(mesh)), arrays[3]]
  ours = _values_and_gradients(sharding.on_mesh(attend, mesh), packed, arrays)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected)


@pytest.mark.parametrize("window", [None, slow(70)])
def test_splash_without_a_mask_equals_blocks(window):
  config = dataclasses.replace(CONFIG, windows=(None, window) if window else ())
  rng = np.random.default_rng(3)
  groups = [[rng.integers(3, 50, n).tolist() for n in (100, 40)]]
  packed = packing.pack_groups([[5] * 90], groups, bucket=128)
  at = None if window is None else jnp.int32(window)
  kernel = functools.partial(attention.CAUSAL["splash"], interpret=True)
  places = positions.places(jax.tree.map(jnp.asarray, packed), at)
  ways = (
    lambda *arrays: shared_prompt.by_responses(*arrays, packed, config, window=at, kernel=kernel),
    lambda *arrays: blockwise.attention(*arrays, places, config, responses=2, block=100),
  )
  ours, expected = (_values_and_gradients(way, packed, _draw(packed, "float32")) for way in ways)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_arrays_of_long_responses_grow_with_their_length(monkeypatch, platform):
  """The largest array of the gradient, on every platform, through the choice that training makes."""
  config = dataclasses.replace(attention_memory.CONFIG, compute_dtype="bfloat16")
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  monkeypatch.setattr(attention, "obstacle_to_splitting", lambda q, k: None)
  monkeypatch.setitem(attention.CAUSAL, "cudnn", lambda q, k, v, config, window: q + jnp.repeat(k + v, 4, axis=2))

  def size(length):
    packed = attention_memory.row(512, 8, length)
    way = lambda q, k, v, packed: shared_prompt.attender(packed, config)(q, k, v, None)
    return largest(attention_memory.gradient(way), *attention_memory.arrays(packed), packed)

  assert size(4096) < 1.2 * 4 * size(1024)


def test_a_kernel_that_would_hold_too_large_a_mask_is_refused(monkeypatch):
  """Short responses to a long prompt: the mask of whole rows is too large, and responses are too short to repeat it."""
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  monkeypatch.setattr(attention, "obstacle_to_splitting", lambda q, k: None)
  packed = attention_memory.row(8192, 16, 1025)
  run = lambda config: jax.eval_shape(
    lambda q, k, v, packed: shared_prompt.attender(packed, config)(q, k, v, None),
    *attention_memory.arrays(packed),
    packed,
  )
  assert run(attention_memory.CONFIG).shape == packed.tokens.shape + (32, 128)
  with pytest.raises(InputError, match="attention=splash needs a mask of .* MiB for rows of .* use auto"):
    run(dataclasses.replace(attention_memory.CONFIG, attention="splash"))


@pytest.mark.parametrize(("bucket", "prompts_per_row"), [slow(1, 1), (4, 3)])
def test_the_gradient_is_the_sum_over_sequences_alone(bucket, prompts_per_row):
  """Every response after a prompt of its own, unpacked, by a forward that knows nothing of groups."""
  config = dataclasses.replace(CONFIG, windows=(None, 4), attention_softcap=3.0)
  params = parameters.init(jax.random.key(0), CONFIG, stddev=0.3)
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
    params = jax.eval_shape(lambda: parameters.init(jax.random.key(0), config))
    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

  small, large = temporary(32), temporary(128)
  assert large < 5 * small
