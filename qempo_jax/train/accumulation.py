"""Gradient accumulation: gradients of a sum over a batch, computed part by part in less memory.

    grad sum_i L_i = sum_k grad sum_{i in part k} L_i

Sums add up exactly, unlike means; the caller computes any divisor over the whole batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.errors import InputError


def value_and_grad(loss_fn: Callable, params, batch, *, micro_batches: int):
  """Value, auxiliary results and gradient of a loss that is a sum over the rows of a batch.

  One part is plain `jax.value_and_grad`. Several are scanned over, with sums in float32 at least.

  Args:
    loss_fn: (params, rows) -> (scalar, aux); the scalar of a batch is the sum of its parts', and every leaf of aux
      has the rows on its first axis.
    params: trainable parameters.
    batch: a pytree with the rows, or the prompts that share them, on each leaf's first axis.
    micro_batches: number of parts, a divisor of the rows.

  Returns:
    ((scalar, aux of all rows in their order), gradient).

  Raises:
    InputError: the parts do not divide the rows.
  """

  def compute(params, batch):
    value_and_aux, gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    return value_and_aux, sharding.constrain_params(gradient)

  if micro_batches == 1:
    return compute(params, batch)

  def one(total, part):
    (loss, aux), gradient = compute(params, part)
    loss, gradient = jax.tree.map(jnp.add, total, (loss, gradient))
    return (loss, sharding.constrain_params(gradient)), aux

  parts = split(batch, micro_batches)
  (loss, _), gradient = jax.eval_shape(compute, params, jax.tree.map(lambda leaf: leaf[0], parts))
  zeros = lambda like: jnp.zeros(like.shape, jnp.promote_types(like.dtype, jnp.float32))
  loss, gradient = jax.tree.map(zeros, (loss, gradient))
  (loss, gradient), aux = jax.lax.scan(one, (loss, sharding.constrain_params(gradient)), parts)
  return (loss, join(aux, num_rows(batch))), gradient


def map_rows(function: Callable, batch, *, micro_batches: int):
  """function(batch), some rows at a time; every leaf of the result has the rows on its first axis."""
  if micro_batches == 1:
    return function(batch)
  return join(jax.lax.map(function, split(batch, micro_batches)), num_rows(batch))


def split(batch, micro_batches: int):
  """[P, ...] -> [M, P / M, ...]: part m has the rows m, m + M, ..., so that every part has rows of each device.

  A leaf's entries of one row, which may be several prompts, stay together.

  Raises:
    InputError: M does not divide the rows.
  """
  rows = num_rows(batch)
  if rows % micro_batches:
    raise InputError(f"compute.micro_batches={micro_batches} does not divide the batch's {rows} rows")

  def one(leaf):
    in_parts = leaf.reshape(rows // micro_batches, micro_batches, -1, *leaf.shape[1:])
    return jnp.swapaxes(in_parts, 0, 1).reshape(micro_batches, -1, *leaf.shape[1:])

  return jax.tree.map(one, batch)


def join(parts, rows: int):
  """Inverse of `split` for a batch of `rows` rows."""

  def one(leaf):
    in_rows = leaf.reshape(leaf.shape[0], rows // leaf.shape[0], -1, *leaf.shape[2:])
    return jnp.swapaxes(in_rows, 0, 1).reshape(-1, *leaf.shape[2:])

  return jax.tree.map(one, parts)


def num_rows(batch) -> int:
  """Number of packed rows: the smallest leading dimension, of which the others are multiples."""
  return min(leaf.shape[0] for leaf in jax.tree.leaves(batch))
