"""Products of attention whose gradients never transpose the scores, the largest arrays there.

Of S = Q K', automatic differentiation takes the gradient of K as (dS)' Q, and compilers for CPUs write (dS)' out first.
Here it is (Q' dS)', of which the far smaller Q and result are transposed. Likewise for S V.

"Rows" are any axes of queries that share the keys of a head, such as [L, r]; the first of them may be split over devices.
"""

import functools

import jax
import jax.numpy as jnp


def scores(q, k):
  """Products of queries with keys, summed in float32 or wider: [..., rows, K] and [..., M, K] to [..., rows, M]."""
  return _product(_in_one_axis(q, k), k, -1).reshape(*q.shape[:-1], k.shape[-2])


def mix(weights, v):
  """Sums of values by weights, in the values' dtype: [..., rows, M] and [..., M, K] to [..., rows, K]."""
  mixed = _product(_in_one_axis(weights, v).astype(v.dtype), v, -2)
  return mixed.astype(v.dtype).reshape(*weights.shape[:-1], v.shape[-1])


def _in_one_axis(a, b):
  """[batch, rows, I] with all rows in one axis, for a b of [batch, J, I]."""
  return a.reshape(*b.shape[:-2], -1, a.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(a, b, axis):
  """The last axis of a [batch, rows, I] summed with that axis of b [batch, J, I] (-1) or [batch, I, J] (-2)."""
  return _dot(a, b, -1, axis)


def _forward(a, b, axis):
  return _product(a, b, axis), (a, b)


def _backward(axis, operands, g):
  a, b = operands
  of_a = _dot(g, b, -1, -3 - axis)
  of_b = jnp.swapaxes(_dot(a, g, -2, -2) if axis == -1 else _dot(g, a, -2, -2), -1, -2)
  return of_a.astype(a.dtype), of_b.astype(b.dtype)


_product.defvjp(_forward, _backward)


def _dot(a, b, axis_a, axis_b):
  """Sums over one of the last two axes of each, all others being common."""
  common = tuple(range(a.ndim - 2))
  wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  dimensions = (((axis_a % a.ndim,), (axis_b % b.ndim,)), (common, common))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=wide)
