"""Attention of packed rows in blocks of queries and keys, with memory linear in a row's length.

    m' = max(m, max_j s_j)    z' = e^(m - m') z + sum_j e^(s_j - m')    o' = e^(m - m') o + sum_j e^(s_j - m') v_j

The first m is the head's sink, a score without a value, or without sinks a number below all scores; the first z is 1.
One block of scores exists at a time. The gradient computes each block again from its log-sum-exp, m + log z. Pairs of
blocks without a visible key are skipped, by the positions and segments of each row. On a mesh with a sequence axis each
device keeps its queries, and keys and values travel around the ring of devices, in the gradient together with their own
gradients.

Sources: Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", arXiv 2112.05682; Dao et al., "FlashAttention",
arXiv 2205.14135, for the gradient; Liu et al., "Ring Attention with Blockwise Transformers", arXiv 2310.01889.

Shape letters as in `layers`, and P rows, R columns of a device, cut into N blocks of C; Q = H / J query heads of a key
head; M = Q C.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.masking import at_least_float32
from qempo_jax.models import head_products
from qempo_jax.models.positions import Tokens
from qempo_jax.models.positions import attends
from qempo_jax.models.positions import prompt_of
from qempo_jax.token_stats import softcap

_NONE = -1e30  # Score of a masked key: finite, so that differences are not NaN.


class _Static(NamedTuple):
  """Options: responses a prompt, soft-cap of scores or None, mesh axis of the ring or None, devices on it."""

  responses: int
  softcap: float | None
  axis: str | None
  devices: int


def attention(q_PxRxHxK, k_PxRxJxK, v_PxRxJxK, tokens_PxR: Tokens, config, *, responses: int, block: int, sinks_H=None):
  """softmax(cap(scale q k')) v over the prompt and the own past of each query.

  Args:
    q_PxRxHxK: rotated queries.
    k_PxRxJxK: rotated keys.
    v_PxRxJxK: values.
    tokens_PxR: places of the columns.
    config: the decoder's config: scale and soft-cap of the scores.
    responses: G, responses a prompt.
    block: most columns of a block.
    sinks_H: the heads' sinks, or None.

  Returns:
    [P, R, H, K]; 0 for a query without keys.
  """
  rows, columns, heads, width = q_PxRxHxK.shape
  devices, shared = sharding.sequence_shards(), k_PxRxJxK.shape[2]
  size = min(block, -(-columns // devices))
  missing = -columns % (size * devices)
  pad = lambda x, fill=0: jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
  q = pad(q_PxRxHxK * config.attention_scale).reshape(rows, -1, shared, heads // shared, width)
  sinks = jnp.full(heads, _NONE) if sinks_H is None else at_least_float32(sinks_H)
  sinks_PxRxJxQ = jnp.broadcast_to(sinks.reshape(shared, -1), q.shape[:-1])
  arrays = q, pad(k_PxRxJxK), pad(v_PxRxJxK), sinks_PxRxJxQ
  axis = sharding.SEQUENCE if devices > 1 else None
  static = _Static(responses, config.attention_softcap, axis, devices)
  run = functools.partial(_on_device, static=static, size=size)
  out = sharding.over_heads(run, arrays, jax.tree.map(lambda x: pad(x, -1), tokens_PxR))
  return out.reshape(rows, -1, heads, width)[:, :columns].astype(v_PxRxJxK.dtype)


def _on_device(q_PxRxJxQxK, k_PxRxJxK, v_PxRxJxK, sinks_PxRxJxQ, tokens_PxR, *, static, size):
  """The device's own columns, with heads first within blocks."""
  rows, columns, shared, group, width = q_PxRxJxQxK.shape
  blocks = lambda x: x.reshape(rows, -1, size, *x.shape[2:])
  q_PxNxJxMxK = jnp.moveaxis(blocks(q_PxRxJxQxK), 2, 4).reshape(rows, -1, shared, group * size, width)
  sinks_PxNxJxM = jnp.moveaxis(blocks(sinks_PxRxJxQ), 2, 4).reshape(q_PxNxJxMxK.shape[:-1])
  keys, values = (jnp.swapaxes(blocks(x), 2, 3) for x in (k_PxRxJxK, v_PxRxJxK))
  out_PxNxJxMxK = _attend(q_PxNxJxMxK, keys, values, sinks_PxNxJxM, jax.tree.map(blocks, tokens_PxR), static)
  out = out_PxNxJxMxK.reshape(rows, -1, shared, group, size, width)
  return jnp.moveaxis(out, 4, 2).reshape(rows, columns, shared, group, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, sinks, tokens, static):
  """[P, N, J, M, K] of queries [P, N, J, M, K], keys and values [P, N, J, C, K], sinks [P, N, J, M]."""
  return _forward(q, k, v, sinks, tokens, static)[0]


def _forward(q, k, v, sinks, tokens, static):
  wide = jnp.promote_types(v.dtype, jnp.float32)
  sums = jnp.zeros(q.shape, wide), sinks.astype(wide), jnp.ones(q.shape[:-1], wide)

  def visit(sums, keys_values, keys, _):
    return jax.lax.map(lambda row: _visit_row(*row, static), (sums, q, tokens, *keys_values, keys)), ()

  (out, top, total), _ = _around(visit, sums, jnp.stack([k, v]), (), tokens, static)
  out = out / total[..., None]
  return out, (q, k, v, sinks, tokens, out, top + jnp.log(total))


def _visit_row(sums, q, queries, k, v, keys, static):
  """The sums of one row's queries with the keys of one device."""
  lists, counts = _pairs(queries, keys, static.responses)

  def of_queries(row):
    sums, q_JxMxK, of_query, blocks, count = row

    def add(n, sums):
      out, top, total = sums
      block = lambda x: x[blocks[n]]
      seen_MxC = _seen(of_query, jax.tree.map(block, keys), q_JxMxK, static)
      scores = jnp.where(seen_MxC, _scores(q_JxMxK, block(k), static), _NONE)
      highest = jnp.maximum(top, jnp.max(scores, axis=-1))
      weights, kept = jnp.where(seen_MxC, jnp.exp(scores - highest[..., None]), 0), jnp.exp(top - highest)
      out = kept[..., None] * out + head_products.product(weights.astype(v.dtype), block(v), -2)
      return out, highest, kept * total + jnp.sum(weights, axis=-1)

    return jax.lax.fori_loop(0, count, add, sums)

  return jax.lax.map(of_queries, (sums, q, queries, lists, counts))


def _backward(static, residuals, g):
  q, k, v, sinks, tokens, out, log_total = residuals
  slope = jnp.sum(g * out, axis=-1)

  def visit(dq, keys_values, keys, gradients):
    arrays = dq, *gradients, q, tokens, log_total, g, slope, *keys_values, keys
    dq, *gradients = jax.lax.map(lambda row: _visit_row_again(*row, static), arrays)
    return dq, jnp.stack(gradients)

  zeros = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
  keys_values = jnp.stack([k, v])
  dq, (dk, dv) = _around(visit, zeros(q), keys_values, zeros(keys_values), tokens, static)
  d_sinks = -jnp.exp(sinks - log_total) * slope
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_sinks.astype(sinks.dtype), None


_attend.defvjp(_forward, _backward)


def _visit_row_again(dq, dk, dv, q, queries, log_total, g, slope, k, v, keys, static):
  """The gradients with the contributions of one row's queries and the keys of one device."""
  lists, counts = _pairs(queries, keys, static.responses)

  def of_queries(carried, row):
    dq_JxMxK, q_JxMxK, of_query, log_total_JxM, g_JxMxK, slope_JxM, blocks, count = row

    def add(n, sums):
      dq, dk, dv = sums
      j = blocks[n]
      seen_MxC = _seen(of_query, jax.tree.map(lambda x: x[j], keys), q_JxMxK, static)
      scores, to_scores = jax.vjp(lambda q, k: _scores(q, k, static), q_JxMxK, k[j])
      weights = jnp.where(seen_MxC, jnp.exp(scores - log_total_JxM[..., None]), 0)
      _, to_mix = jax.vjp(lambda weights, v: head_products.product(weights, v, -2), weights, v[j])
      d_weights, more_v = to_mix(g_JxMxK)
      more_q, more_k = to_scores(weights * (d_weights - slope_JxM[..., None]))
      return dq + more_q, dk.at[j].add(more_k), dv.at[j].add(more_v)

    dq, *carried = jax.lax.fori_loop(0, count, add, (dq_JxMxK, *carried))
    return tuple(carried), dq

  (dk, dv), dq = jax.lax.scan(of_queries, (dk, dv), (dq, q, queries, log_total, g, slope, lists, counts))
  return dq, dk, dv


def _around(visit, state, keys_values, gradients, tokens, static):
  """(state, gradients) after a full turn of the ring, on which keys, values and their gradients visit every device.

  `visit(state, keys_values, their tokens, gradients)` returns the new state and gradients. Keys and values move as one
  array: fake devices on a CPU that wait for several at once would take all its threads.
  """
  if not static.axis:
    return visit(state, keys_values, tokens, gradients)
  everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, static.axis), tokens)
  ring = [(i, (i + 1) % static.devices) for i in range(static.devices)]
  onward = functools.partial(jax.tree.map, lambda x: jax.lax.ppermute(x, static.axis, ring))

  def turn(carried, turn):
    state, keys_values, gradients = carried
    home = (jax.lax.axis_index(static.axis) - turn) % static.devices
    state, gradients = visit(state, keys_values, jax.tree.map(lambda x: x[home], everyone), gradients)
    return (state, onward(keys_values), onward(gradients)), None

  (state, _, gradients), _ = jax.lax.scan(turn, (state, keys_values, gradients), jnp.arange(static.devices))
  return state, gradients


def _scores(q_JxMxK, k_JxCxK, static):
  return softcap(head_products.product(q_JxMxK, k_JxCxK, -1), static.softcap)


def _seen(queries: Tokens, keys: Tokens, q_JxMxK, static):
  """Mask [M, C] of one pair of blocks."""
  seen_CxC = attends(queries, keys, static.responses)
  return jnp.tile(seen_CxC, (q_JxMxK.shape[1] // seen_CxC.shape[0], 1))


def _pairs(queries: Tokens, keys: Tokens, responses: int):
  """Lists of the blocks of keys that each block of queries visits, and their lengths: ([N, N], [N]).

  Ranges of positions and segments are compared, so that no pair that is needed is left out.
  """
  is_prompt = keys.segments % (responses + 1) == 0
  low = lambda x, real: jnp.min(jnp.where(real, x, 2**30), axis=-1)
  high = lambda x, real: jnp.max(jnp.where(real, x, -(2**30)), axis=-1)
  bounds = lambda x, real: (low(x, real), high(x, real))
  real, key_real = queries.segments >= 0, keys.segments >= 0
  meets = lambda a, b: (a[0][:, None] <= b[1]) & (b[0] <= a[1][:, None])
  own = meets(bounds(queries.segments, real), bounds(keys.segments, key_real))
  prompts = bounds(prompt_of(queries.segments, responses), real)
  of_prompt = meets(prompts, bounds(keys.segments, key_real & is_prompt))
  reached = low(queries.oldest, real)[:, None] <= high(keys.positions, key_real)
  past = low(keys.positions, key_real) <= high(queries.positions, real)[:, None]
  needed_NxN = (own | of_prompt) & reached & past
  return jnp.argsort(~needed_NxN, axis=-1), jnp.sum(needed_NxN, axis=-1)
