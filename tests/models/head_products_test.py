"""Attention's products against plain ones and their automatic gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import head_products

# (queries' subscripts, keys' subscripts): rows of one and of several axes, one and several batch axes.
CASES = [("bjrlk", "bjmk"), ("pjnqck", "pjlk"), ("pjnqck", "pjnwk"), ("qk", "wk")]
SIZES = {letter: size for size, letter in enumerate("bpjnrqclmwk", start=2)}


@pytest.mark.parametrize(
  "queries, keys, dtype, tolerance", [*((*case, "float32", 1e-5) for case in CASES), (*CASES[1], "bfloat16", 3e-2)]
)
def test_products_and_gradients_equal_plain_ones(queries, keys, dtype, tolerance):
  draw = lambda seed, letters: jax.random.normal(jax.random.key(seed), [SIZES[letter] for letter in letters]).astype(
    dtype
  )
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

  def both(attend):
    loss = lambda *arrays: (jnp.sum((value := attend(*arrays)) * wide(outer)), value)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

  (gradients, value), (expected, expected_value) = both(ours), both(plain)
  np.testing.assert_allclose(value, expected_value, rtol=tolerance, atol=tolerance * 10)
  for found, wanted in zip(gradients, expected):
    assert found.dtype == dtype
    scale = float(jnp.max(jnp.abs(wide(wanted))))
    np.testing.assert_allclose(wide(found) / scale, wide(wanted) / scale, rtol=0, atol=tolerance)
