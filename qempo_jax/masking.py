"""Sums and means over response tokens, unaffected by any padding, including NaN."""

import chex
from jax import Array
import jax.numpy as jnp


def at_least_float32(x: chex.Numeric) -> Array:
  """Casts half precision to float32 and keeps float32 and float64.

  Args:
    x: any shape; half precision, single, double, boolean or integer.

  Returns:
    The same values, same shape.
  """
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked(x: Array, mask: Array) -> Array:
  """Zeroes x outside the mask, in value and gradient, even if x is infinite or NaN there.

  Args:
    x: any shape.
    mask: shape of `x`; True or non-zero keeps an entry.

  Returns:
    At least float32, shape of `x`.
  """
  x = at_least_float32(x)
  return jnp.where(jnp.asarray(mask).astype(bool), x, jnp.zeros((), x.dtype))


def masked_sum(x: Array, mask: Array) -> Array:
  """Sum of x over the mask: sum_t mask_t x_t; zero if all is masked.

  Args:
    x: [T].
    mask: [T].

  Returns:
    Scalar, at least float32.
  """
  return jnp.sum(masked(x, mask))


def masked_mean(x: Array, mask: Array) -> Array:
  """Mean of x over the mask; zero if all is masked.

  Args:
    x: [T].
    mask: [T].

  Returns:
    Scalar, at least float32.
  """
  x = masked(x, mask)
  count = jnp.sum(jnp.asarray(mask).astype(bool)).astype(x.dtype)
  return jnp.sum(x) / jnp.maximum(count, 1)


def masked_group(mask: Array | None, *arrays: Array) -> tuple[Array, ...]:
  """Checks shapes, then zeroes values outside the mask; returns the arrays, then the mask."""
  mask = jnp.ones(jnp.shape(arrays[0]), bool) if mask is None else jnp.asarray(mask).astype(bool)
  chex.assert_rank([mask, *arrays], 1)
  chex.assert_equal_shape([mask, *arrays])
  return (*(masked(x, mask) for x in arrays), mask)
