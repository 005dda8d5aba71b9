"""Adapters: merged and unmerged are one policy, gradients stay in the adapters, and runs with them are runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax.errors import InputError
from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch
from tests import scored

CONFIG = ModelConfig(50, 16, 24, 2, 4, 2, 8, 100.0, 1e-5, False)  # heads: 32 wide together, unlike the residual's 16
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 7)))


@functools.cache
def _base(dtype=jnp.float32, config=CONFIG):
  return jax.jit(lambda rng: parameters.init(rng, config, stddev=0.2, dtype=dtype))(jax.random.key(0))


def _adapters(base, rank=3, **kwargs):
  """Adapters that change something: B is random too."""
  adapters = lora.init(jax.random.key(1), base, lora.LoraConfig(rank, 2.0 * rank, **kwargs))
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return tree.unflatten([0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, config=CONFIG):
  positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
  mask = transformer.causal_mask(positions, jnp.ones_like(TOKENS, bool))
  hidden = transformer.forward(params, config, TOKENS, positions, mask)
  return transformer.logits(hidden, transformer.unembedding(params), config)


def test_fresh_adapters_change_nothing():
  base = _base()
  adapters = lora.init(jax.random.key(1), base, lora.LoraConfig(3, 6.0))
  np.testing.assert_array_equal(_logits(lora.apply(base, adapters)), _logits(base))
  assert all(float(jnp.abs(adapter.a).max()) > 0 for adapter in adapters["layers"].values())


@pytest.mark.parametrize("targets", [lora.ALL_MATRICES, pytest.param("^layers/(output|down)$", marks=pytest.mark.slow)])
def test_applied_equals_merged(targets):
  base = _base()
  adapters = _adapters(base, targets=targets)
  applied, merged = lora.apply(base, adapters), jax.jit(lora.merge)(base, adapters)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  np.testing.assert_allclose(_logits(applied), _logits(merged), atol=1e-4)
  assert float(jnp.abs(_logits(applied) - _logits(base)).max()) > 0.1


def test_merged_is_the_formula():
  base = _base()
  adapters = _adapters(base)
  merged = lora.merge(base, adapters)
  for name, inputs in (("query", 16), ("output", 32), ("down", 24)):
    a, b = (np.asarray(part, np.float64) for part in (adapters["layers"][name].a, adapters["layers"][name].b))
    before, after = (np.asarray(tree["layers"][name], np.float64)[1].reshape(inputs, -1) for tree in (base, merged))
    np.testing.assert_allclose(after, before + 2.0 * a[1] @ b[1], atol=1e-5)


def test_gradient_is_that_of_the_merged_parameters_by_the_chain_rule():
  base = _base()
  adapters = _adapters(base)
  weights = jax.random.normal(jax.random.key(4), _logits(base).shape)
  loss = lambda params: jnp.sum(weights * _logits(params))
  ours, of_base = jax.jit(jax.grad(lambda ad, base: loss(lora.apply(base, ad)), argnums=(0, 1)))(adapters, base)
  for leaf in jax.tree.leaves(of_base):
    assert not np.any(leaf)
  full = jax.jit(jax.grad(loss))(lora.merge(base, adapters))
  for name, adapter in adapters["layers"].items():
    shape = lora.matrix_shape(name, base["layers"][name].shape)
    change = full["layers"][name].reshape(shape)
    scale = float(jnp.abs(change).max())
    expected_a = adapter.scale * jnp.einsum("nio,nro->nir", change, adapter.b)
    expected_b = adapter.scale * jnp.einsum("nir,nio->nro", adapter.a, change)
    np.testing.assert_allclose(ours["layers"][name].a, expected_a, rtol=1e-3, atol=1e-4 * scale, err_msg=name)
    np.testing.assert_allclose(ours["layers"][name].b, expected_b, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


def test_adapters_of_full_rank_make_any_update():
  base = _base()
  target = parameters.init(jax.random.key(9), CONFIG, stddev=0.2)
  adapters = {"layers": {}}
  for name in ("query", "output", "gate", "down"):
    shape = lora.matrix_shape(name, base["layers"][name].shape)
    change = (target["layers"][name] - base["layers"][name]).reshape(shape)
    left, values, right = np.linalg.svd(np.asarray(change), full_matrices=False)
    adapters["layers"][name] = lora.Adapter(jnp.asarray(left * values[:, None]), jnp.asarray(right), 1.0)
  merged = lora.merge(base, adapters)
  wanted = base | {"layers": base["layers"] | {name: target["layers"][name] for name in adapters["layers"]}}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged, wanted)


def test_biases_and_norms_stay_the_bases_own():
  config = dataclasses.replace(CONFIG, biases=("query", "key", "value"), qk_norm="head")
  base = _base(config=config)
  base = base | {"layers": base["layers"] | {"query_bias": base["layers"]["query_bias"] + 0.3}}
  adapters = _adapters(base)
  np.testing.assert_allclose(
    _logits(lora.apply(base, adapters), config), _logits(lora.merge(base, adapters), config), atol=1e-4
  )


@pytest.mark.slow
def test_sampler_and_scorer_agree_on_adapted_parameters():
  base = _base()
  params = lora.apply(base, _adapters(base))
  prompts = PromptBatch(jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.ones((2, 3), bool))
  rollout = jax.device_get(
    sampler.sample_groups(
      params, CONFIG, prompts, jax.random.key(0), group_size=3, max_length=4, temperature=1.0, stop_tokens=(0,)
    )
  )
  responses = [[tokens[mask] for tokens, mask in zip(*group)] for group in zip(rollout.tokens, rollout.mask)]
  packed = packing.pack_groups([[1, 2, 3], [4, 5, 6]], responses, bucket=16)
  stats = scored.score_groups(params, CONFIG, packed, group_size=3, max_length=4, temperature=1.0, chunk_size=16)
  np.testing.assert_allclose(stats.log_prob, rollout.log_probs, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compute", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_half_precision_base_keeps_single_precision_adapters(compute):
  config = dataclasses.replace(
    CONFIG, compute_dtype=compute, norm_offset=1.0
  )  # as Gemma's norms, whose scales are small
  base = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * jnp.bfloat16(0.01) if "norm" in jax.tree_util.keystr(path) else leaf, _base(jnp.bfloat16)
  )
  adapters = _adapters(base)

  def total(adapters, base):
    logits = _logits(lora.apply(base, adapters), config)
    return jnp.sum(jax.nn.log_softmax(logits)[..., 0]), logits

  gradient, logits = jax.jit(jax.grad(total, has_aux=True))(adapters, base)
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
  np.testing.assert_array_equal(logits, _logits(lora.apply(wide, adapters), config))
  assert logits.dtype == jnp.float32


@pytest.mark.slow
def test_the_gradient_needs_no_room_for_the_base():
  """The compiled step's scratch memory and results stay far below one copy of the base."""
  config = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=512, num_layers=8, num_heads=2)
  base = _base(config=config)
  adapters = _adapters(base, rank=2)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
  small = lambda ad, base: jnp.sum(_logits(lora.apply(base, ad), config))
  memory = jax.jit(jax.grad(small)).lower(adapters, base).compile().memory_analysis()
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.5 * size
  full = lambda base, ad: jnp.sum(_logits(lora.merge(base, ad), config))
  memory = jax.jit(jax.grad(full)).lower(base, adapters).compile().memory_analysis()
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes > size


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((0, 1.0), "lora.rank=0"),
    ((2, 0.0), "must be positive"),
    ((2, 1.0, "("), "not a regular expression"),
    ((2, 1.0, "embedding"), "matches none of layers/query"),
  ],
)
def test_mistakes_are_said(arguments, message):
  with pytest.raises(InputError, match=message):
    lora.init(jax.random.key(0), _base(), lora.LoraConfig(*arguments))
