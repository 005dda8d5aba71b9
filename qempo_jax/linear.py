"""Matrix products in a compute dtype with float32 sums."""

import functools

import jax
from jax.experimental import layout
import jax.numpy as jnp

from qempo_jax import sharding


@jax.named_scope("linear")
def linear(x, w, dtype=jnp.float32, *, transpose=False):
  """x w over x's last axis, operands rounded to `dtype`, sums and result in float32.

  The gradients' products are rounded in the same way: dx = g w' and dw = x' g with x, w and g in `dtype` and float32
  sums. A float32 weight keeps a float32 gradient (mixed precision, Micikevicius et al., arXiv 1710.03740).

  Args:
    x: [..., D].
    w: [D, F].
    dtype: dtype of the operands; float32 is the plain product.
    transpose: True if w is [F, D], such as an embedding as output projection.

  Returns:
    [..., F], float32 (wider if the operands are).
  """
  # One long list of rows is fastest; with tokens sharded over devices only the original axes keep the sharding.
  rows = x if sharding.sequence_shards() > 1 else x.reshape(-1, x.shape[-1])
  if jnp.dtype(dtype) == jnp.float32:
    product = _product(rows, w, (rows.ndim - 1,), (int(transpose),), None)
  else:
    product = _rounded(rows, w, jnp.dtype(dtype), transpose)
  return product.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rounded(x, w, dtype, transpose):
  return _product(x.astype(dtype), w.astype(dtype), (x.ndim - 1,), (int(transpose),))


def _forward(x, w, dtype, transpose):
  x_dtype = jnp.zeros((), x.dtype)  # Residuals are arrays: a scalar carries the dtype.
  return _rounded(x, w, dtype, transpose), (x.astype(dtype), w, x_dtype)


def _backward(dtype, transpose, residuals, g):
  x, w, x_dtype = residuals
  g = g.astype(dtype)
  dx = _product(g, w.astype(dtype), (g.ndim - 1,), (int(not transpose),))
  left, right = (g, x) if transpose else (x, g)
  if x.ndim == 2:
    dw = _product(_in_rows(left.T), right, (1,), (0,))
  else:
    dw = _product(left, right, *(tuple(range(x.ndim - 1)),) * 2)
  return dx.astype(x_dtype.dtype), dw.astype(w.dtype)


_rounded.defvjp(_forward, _backward)


def _product(a, b, axes_a, axes_b, dtype=jnp.float32):
  common = jnp.promote_types(a.dtype, b.dtype)  # A weight stored in half precision meets wider activations.
  a, b = a.astype(common), b.astype(common)
  dimensions = ((axes_a, axes_b), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def _in_rows(x):
  """x in row-major layout on CPUs, whose fast low-precision product needs such a left operand."""
  rows = layout.Layout(major_to_minor=(0, 1))
  return jax.lax.platform_dependent(x, cpu=lambda x: layout.with_layout_constraint(x, rows), default=lambda x: x)
