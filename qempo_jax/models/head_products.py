"""Products of attention with gradients that never transpose the scores, the largest arrays there.

For S = Q K', automatic differentiation computes the gradient of K as (dS)' Q, and CPU compilers write out (dS)' first.
Here it is (Q' dS)', which transposes only the far smaller Q and the result. S V is treated in the same way.

"Rows" are any axes of queries that share the keys of a head, such as [L, r]; the first of them may be sharded.
"""

import functools

import jax
import jax.numpy as jnp


def scores(q, k):
  """Products of queries with keys, summed in float32 or wider: [..., rows, K] and [..., M, K] to [..., rows, M]."""
  return product(_in_one_axis(q, k), k, -1).reshape(*q.shape[:-1], k.shape[-2])


def mix(weights, v):
  """Sums of values with weights, in the values' dtype: [..., rows, M] and [..., M, K] to [..., rows, K]."""
  mixed = product(_in_one_axis(weights, v).astype(v.dtype), v, -2)
  return mixed.astype(v.dtype).reshape(*weights.shape[:-1], v.shape[-1])


def _in_one_axis(a, b):
  """a as [batch, rows, I] with all its rows in one axis, for b [batch, J, I]."""
  return a.reshape(*b.shape[:-2], -1, a.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(a, b, axis):
  """Sum over the last axis of a [batch, rows, I] and over an axis of b: [batch, J, I] (-1) or [batch, I, J] (-2)."""
  return _dot(a, b, -1, axis)


def _forward(a, b, axis):
  return product(a, b, axis), (a, b)


def _backward(axis, operands, g):
  a, b = operands
  da = _dot(g, b, -1, -3 - axis)
  db = jnp.swapaxes(_dot(a, g, -2, -2) if axis == -1 else _dot(g, a, -2, -2), -1, -2)
  return da.astype(a.dtype), db.astype(b.dtype)


product.defvjp(_forward, _backward)


def _dot(a, b, axis_a, axis_b):
  """Sum over one of the last two axes of each; all other axes are batch axes."""
  common = tuple(range(a.ndim - 2))
  wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  dimensions = (((axis_a % a.ndim,), (axis_b % b.ndim,)), (common, common))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=wide)
