"""Products in a compute dtype: exact in float32, rounded operands and float32 sums in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.linear import linear
from qempo_jax.models import parameters
from tests.loops import toy


@pytest.fixture
def operands():
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5, 24), (24, 40), (3, 5, 40))]


@pytest.mark.parametrize("transpose", [False, True])
def test_float32_is_the_plain_product(operands, transpose):
  x, w, _ = operands
  np.testing.assert_allclose(linear(x, w.T if transpose else w, transpose=transpose), x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transpose", [False, True])
def test_bfloat16_rounds_operands_and_nothing_else(operands, transpose):
  x, w, g = operands
  as_used = lambda w: w.T if transpose else w
  rounded = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
  out, vjp = jax.vjp(lambda x, w: linear(x, as_used(w), jnp.bfloat16, transpose=transpose), x, w)
  dx, dw = vjp(g)
  assert out.dtype == dx.dtype == dw.dtype == jnp.float32
  tight = {"rtol": 1e-5, "atol": 1e-5}
  np.testing.assert_allclose(out, rounded(x) @ rounded(w), **tight)
  np.testing.assert_allclose(dx, rounded(g) @ rounded(w).T, **tight)
  np.testing.assert_allclose(dw, jnp.einsum("bld,blf->df", rounded(x), rounded(g)), **tight)
  assert np.abs(out - x @ w).max() > 1e-4  # the rounding is there


def test_a_bfloat16_weight_gets_a_bfloat16_gradient(operands):
  x, w, _ = operands
  gradient = jax.grad(lambda w: jnp.sum(linear(x, w, jnp.bfloat16)))(w.astype(jnp.bfloat16))
  assert gradient.dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_bfloat16_policy_scores_near_the_float32_one_and_climbs_the_same_way():
  config = toy.MODEL
  params = parameters.init(jax.random.key(0), config, stddev=0.1)
  packed = packing.pack_groups([[1, 2, 3]], [[[2, 0], [3, 4, 1, 0], [5]]], bucket=8)

  def score(params, dtype):
    stats = scoring.score_groups(
      params,
      dataclasses.replace(config, compute_dtype=dtype),
      packed,
      group_size=3,
      max_length=4,
      temperature=1.0,
      chunk_size=4,
    )
    return jnp.sum(stats.log_prob * jnp.array([1.0, -0.5, 2.0])[:, None]), stats

  gradients, stats = zip(
    *(jax.jit(jax.grad(score, has_aux=True), static_argnums=1)(params, dtype) for dtype in ("float32", "bfloat16"))
  )
  difference = np.abs(stats[0].log_prob - stats[1].log_prob)
  assert 0 < difference.max() < 0.05
  full, low = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in gradients)
  assert full @ low > 0.999 * np.linalg.norm(full) * np.linalg.norm(low)
