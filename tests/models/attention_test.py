"""Attention's implementations agree, and each says what it cannot do; so do the remat policies."""

import dataclasses
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import attention
from qempo_jax.models import parameters
from qempo_jax.models import transformer
from qempo_jax.models.config import REMATS
from qempo_jax.models.config import ModelConfig

CONFIG = ModelConfig(16, 16, 24, 2, 4, 2, 8, 100.0, 1e-5, True)
LENGTH = 128


def _inputs(rows=2, length=LENGTH):
  """Random arrays, and the mask of a prompt of 20 tokens with two responses, the rest of the row empty."""
  rng = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(rng.normal(size=(rows, length, heads, 8)), jnp.float32)
  place = np.arange(length)
  segments = np.select([place < 20, place < 60, place < 100], [0, 1, 2], -1)
  seen = (segments[:, None] == segments) | (segments[None] == 0)
  mask = np.tril(seen) & (segments[:, None] >= 0) & (segments >= 0)
  mask &= place[:, None] - place < 50  # a window too
  return draw(4), draw(2), draw(2), jnp.asarray(np.broadcast_to(mask, (rows, length, length)))


def _plain(q, k, v, mask, config, sinks=None):
  """Every head on its own, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  scores = np.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(q.shape[-1])
  if config.attention_softcap:
    scores = config.attention_softcap * np.tanh(scores / config.attention_softcap)
  weights = np.where(np.asarray(mask)[:, None], np.exp(scores), 0)
  sunk = 0 if sinks is None else np.exp(np.asarray(sinks, np.float64))[:, None, None]
  weights /= np.maximum(weights.sum(-1, keepdims=True) + sunk, 1e-300)
  return np.einsum("bhlm,bmhk->blhk", weights, v)


def _splash(q, k, v, mask, config):
  return attention.splash(q, k, v, lambda mask, _: mask, mask, (), config, interpret=True)


@pytest.mark.parametrize("softcap", [pytest.param(None, marks=pytest.mark.slow), 1.5])
def test_xla_and_splash_equal_the_formula(softcap):
  config = dataclasses.replace(CONFIG, attention_softcap=softcap)
  *qkv, mask = _inputs()
  real = np.asarray(mask.any(-1))[:, :, None, None]
  expected = _plain(*qkv, mask, config)
  xla = jax.jit(lambda *qkv: attention.attention(*qkv, mask, config))(*qkv)
  np.testing.assert_allclose(np.where(real, xla, 0), np.where(real, expected, 0), atol=1e-5)
  splash = jax.jit(lambda *qkv: _splash(*qkv, mask, config))(*qkv)
  np.testing.assert_allclose(np.where(real, splash, 0), np.where(real, expected, 0), atol=1e-5)
  assert np.isfinite(splash).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sinks_take_weight_and_give_no_value(dtype):
  *qkv, mask = _inputs()
  sinks = jnp.array([-1.0, 0.5, 3.0, 90.0], dtype)
  ours = attention.attention(*qkv, mask, CONFIG, sinks)
  real = np.asarray(mask.any(-1))[:, :, None, None]
  np.testing.assert_allclose(np.where(real, ours - _plain(*qkv, mask, CONFIG, sinks), 0), 0, atol=1e-5)


def test_splash_has_the_gradient_of_xla():
  *qkv, mask = _inputs(rows=1)
  weights = jnp.where(mask.any(-1)[:, :, None, None], jax.random.normal(jax.random.key(0), qkv[0].shape), 0)
  gradient = lambda attend: jax.jit(jax.grad(lambda *x: jnp.sum(weights * attend(*x)), argnums=(0, 1, 2)))(*qkv)
  xla = gradient(lambda *x: attention.attention(*x, mask, CONFIG))
  splash = gradient(lambda *x: _splash(*x, mask, CONFIG))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), splash, xla)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN runs on GPUs alone")
def test_cudnn_equals_xla_to_half_precision():
  config = dataclasses.replace(CONFIG, compute_dtype="bfloat16", attention="cudnn")
  *qkv, mask = _inputs()
  weights = jnp.where(mask.any(-1)[:, :, None, None], jax.random.normal(jax.random.key(0), qkv[0].shape), 0)
  total = lambda config: jax.value_and_grad(
    lambda *x: jnp.sum(weights * attention.attention(*x, mask, config)), argnums=(0, 1, 2)
  )
  ours, expected = (total(dataclasses.replace(config, attention=name))(*qkv) for name in ("cudnn", "xla"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05), ours, expected)


@pytest.mark.parametrize(
  ("platform", "changes", "expected"),
  [
    ("cpu", {}, "xla"),
    ("gpu", {}, "xla"),  # float32
    ("gpu", {"compute_dtype": "bfloat16"}, "cudnn"),
    ("gpu", {"compute_dtype": "bfloat16", "attention_softcap": 50.0}, "xla"),
    ("gpu", {"compute_dtype": "bfloat16", "attention": "xla"}, "xla"),
    ("tpu", {"attention_softcap": 50.0}, "splash"),
    ("tpu", {"attention_sinks": True}, "xla"),
  ],
)
def test_auto_takes_what_is_possible(platform, changes, expected):
  assert attention.chosen(dataclasses.replace(CONFIG, **changes), LENGTH, 8, platform) == expected


@pytest.mark.parametrize(
  ("name", "platform", "length", "changes", "message"),
  [
    ("cudnn", "cpu", 128, {}, "compute.attention=cudnn needs an NVIDIA GPU"),
    ("cudnn", "gpu", 128, {}, "compute.dtype is float32"),
    ("cudnn", "gpu", 128, {"attention_softcap": 50.0}, "attention_softcap is 50.0"),
    ("cudnn", "gpu", 127, {"compute_dtype": "bfloat16"}, "these have 127"),
    ("cudnn", "gpu", 128, {"attention_sinks": True}, "cudnn has no attention sinks, and this model's heads have them"),
    ("splash", "gpu", 128, {}, "needs a TPU"),
    ("splash", "tpu", 128, {"attention_sinks": True}, "splash has no attention sinks"),
    ("splash", "tpu", 100, {}, "multiple of 128 tokens, and these have 100; set compute.bucket"),
  ],
)
def test_what_cannot_be_done_is_said(name, platform, length, changes, message):
  config = dataclasses.replace(CONFIG, attention=name, **changes)
  with pytest.raises(InputError, match=message):
    attention.chosen(config, length, 8, platform)
  auto = dataclasses.replace(config, attention="auto")
  assert attention.chosen(auto, length, 8, platform) == "xla"


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape", [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 2, 1), (1, 1, 2, 2)))]
)
def test_splash_on_a_mesh_equals_xla_in_value_and_gradient(shape):
  mesh = sharding.make_mesh(shape, devices=jax.devices()[: math.prod(shape)])
  *qkv, mask = _inputs(rows=4, length=LENGTH * (2 if len(shape) > 3 else 1))
  weights = jnp.where(mask.any(-1)[:, :, None, None], jax.random.normal(jax.random.key(0), qkv[0].shape), 0)

  def compiled(attend):
    loss = lambda *x: jnp.sum(weights * attend(*x))
    return jax.jit(sharding.on_mesh(jax.value_and_grad(loss, argnums=(0, 1, 2)), mesh))

  placed = jax.device_put(qkv, sharding.batch_sharding(mesh))
  splash = compiled(lambda *x: _splash(*x, mask, CONFIG))(*placed)
  xla = compiled(lambda *x: attention.attention(*x, mask, CONFIG))(*placed)
  assert splash[1][0].sharding.shard_shape(qkv[0].shape)[0] == 4 // (shape[0] * shape[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), splash, xla)


def test_splash_says_what_its_mesh_cannot_split():
  config = dataclasses.replace(CONFIG, attention="splash")
  *qkv, mask = _inputs(rows=3)
  run = lambda mesh: jax.eval_shape(sharding.on_mesh(lambda *x: attention.attention(*x, mask, config), mesh), *qkv)
  with mock.patch.object(sharding, "platform", lambda: "tpu"):
    with pytest.raises(InputError, match="data x fsdp = 8 divides, and these are 3"):
      run(sharding.make_mesh((2, 4, 1)))
    with pytest.raises(InputError, match="tensor = 8 divides, and these are 2"):
      run(sharding.make_mesh((1, 1, 8)))
    with pytest.raises(InputError, match="must know the mesh of its 8 devices"):
      attention.attention(*qkv, mask, config)


@pytest.mark.parametrize("compute", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_remat_policies_have_one_gradient(compute):
  params = parameters.init(jax.random.key(0), CONFIG, stddev=0.3)
  tokens, positions = jnp.arange(8)[None], jnp.arange(8)[None]
  mask = transformer.causal_mask(positions, jnp.ones((1, 8), bool))

  def lowered(name):
    config = dataclasses.replace(CONFIG, compute_dtype=compute, remat=name)
    loss = lambda params: jnp.sum(transformer.forward(params, config, tokens, positions, mask) ** 2)
    return jax.jit(jax.grad(loss)).lower(params)

  programs = {name: lowered(name) for name in REMATS}
  full = programs["full"].compile()(params)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))
  for name in ("none", "dots") if compute == "float32" else REMATS:
    jax.tree.map(near, programs[name].compile()(params), full)
  flops = {name: program.cost_analysis()["flops"] for name, program in programs.items()}
  assert flops["none"] <= flops["dots"] <= flops["dots_no_batch"] <= flops["full"]
  assert flops["none"] < flops["full"]  # the policies do recompute different things


def test_an_unknown_policy_is_refused():
  with pytest.raises(InputError, match="remat='some' is not one of 'none', 'full'"):
    dataclasses.replace(CONFIG, remat="some")
