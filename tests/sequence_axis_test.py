"""Rows split over the sequence axis: each device holds its own tokens, and memory falls as the axis grows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax import sharding
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig

MODEL = ModelConfig(48, 32, 64, 2, 4, 2, 8, 100.0, 1e-5, True)
PROMPT, RESPONSE, GROUP = 128, 256, 2


def _compiled(shape):
  """The gradient of a score of four long rows, compiled for so many devices."""
  mesh = sharding.make_mesh(shape, devices=jax.devices()[: np.prod(shape)])
  prompts, groups = [[1] * PROMPT] * 4, [[[2] * RESPONSE] * GROUP] * 4
  packed = packing.pack_groups(prompts, groups, bucket=64)
  score = functools.partial(
    scoring.score_groups, config=MODEL, group_size=GROUP, max_length=RESPONSE, temperature=1.0, chunk_size=64
  )
  loss = lambda params, packed: jnp.sum(score(params, packed=packed).log_prob)
  place = lambda tree, where: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)
  params = jax.eval_shape(lambda: parameters.init(jax.random.key(0), MODEL))
  where = sharding.tree_shardings(params, mesh, sharding.PARAM_RULES)
  rows = place(packed, jax.tree.map(lambda _: sharding.batch_sharding(mesh), packed))
  jitted = jax.jit(sharding.on_mesh(jax.grad(loss), mesh), out_shardings=where)
  return packed.tokens.shape[1], jitted.lower(place(params, where), rows).compile()


@pytest.fixture(scope="module")
def whole():
  return _compiled((2, 1, 1))


@pytest.mark.parametrize("shape", [pytest.param((2, 1, 1, 2), marks=pytest.mark.slow), (2, 1, 1, 4)])
def test_activations_are_split(whole, shape):
  places, compiled = _compiled(shape)
  parts, text = shape[3], compiled.as_text()
  temporary = lambda program: program.memory_analysis().temp_size_in_bytes
  assert temporary(compiled) < temporary(whole[1]) / parts * 1.3
  # Of a block's two rows: the feed-forward part, and the scores of a response's chunk, are split.
  assert f"f32[2,{places // parts},64]" in text and f"f32[2,{places},64]" not in text
