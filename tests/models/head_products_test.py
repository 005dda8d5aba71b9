"""Attention's products against plain ones and their automatic gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import head_products

# (queries' subscripts, keys' subscripts): rows of one and of several axes, one and several batch axes.
CASES = [("bjrlk", "bjmk"), ("pjnqck", "pjlk"), ("pjnqck", "pjnwk"), ("qk", "wk")]
SIZES = {letter: size for size, letter in enumerate("bpjnrqclmwk", start=2)}


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("queries, keys", CASES)
def test_products_and_gradients_equal_plain_ones(queries, keys, dtype, tolerance):
  draw = lambda seed, letters: jax.random.normal(jax.random.key(seed), [SIZES[letter] for letter in letters]).astype(dtype)
  weights = queries[:-1] + keys[-2]
  q, k, v, outer = draw(0, queries), draw(1, keys), draw(2, keys), draw(3, queries)
  wide = lambda array: array.astype(jnp.float32)

  def plain(q, k, v):
    found = jnp.tanh(jnp.einsum(f"{queries},{keys}->{weights}", wide(q), wide(k)))
    return jnp.einsum(f"{weights},{keys}->{queries}", found, wide(v))

  def ours(q, k, v):
    found = head_products.scores(q, k)
    assert found.dtype == jnp.float32
    mixed = head_products.mix(jnp.tanh(found), v)
    assert mixed.dtype == dtype
    return wide(mixed)

  np.testing.assert_allclose(ours(q, k, v), plain(q, k, v), rtol=tolerance, atol=tolerance * 10)
  loss = lambda attend: lambda *arrays: jnp.sum(attend(*arrays) * wide(outer))
  expected = jax.grad(loss(plain), argnums=(0, 1, 2))(q, k, v)
  for found, wanted in zip(jax.grad(loss(ours), argnums=(0, 1, 2))(q, k, v), expected):
    assert found.dtype == dtype
    scale = float(jnp.max(jnp.abs(wide(wanted))))
    np.testing.assert_allclose(wide(found) / scale, wide(wanted) / scale, rtol=0, atol=tolerance)
