"""Sums over the vocabulary and their gradient, a block of the logits at a time, by XLA: on every device.

Tokens are processed in chunks, and the vocabulary of a chunk in blocks. Shape letters: T tokens, C of a chunk, D width,
V vocabulary in G parts (one for each device of the mesh's tensor axis), B columns of a block in each part.
"""

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.kernels import online_softmax
from qempo_jax.kernels.head import Head
from qempo_jax.kernels.head import softcap
from qempo_jax.linear import linear

_LANES = 128  # Block widths are multiples of it.


def sums(head: Head, hidden_TxD, unembedding_VxD, targets_T, temperature) -> online_softmax.Sums:
  """Sums of every token over its whole vocabulary, each [T, 1]."""
  slabs, width, count = _slabs(head, unembedding_VxD)

  def chunk(inputs):
    hidden_CxD, targets_C = inputs

    def block(sums, index):
      start, columns, counted = _columns(head, index, width, slabs)
      slab = jax.lax.dynamic_slice_in_dim(slabs, start, width, axis=1)
      logits = _logits(head, hidden_CxD, slab, temperature, counted)
      return online_softmax.add(sums, logits, _hits(columns, counted, targets_C)), None

    return _over(count, block, online_softmax.nothing(len(targets_C)))

  length = len(targets_T)
  by_chunk = jax.lax.map(chunk, _chunks(head, length, (hidden_TxD, targets_T)))
  return jax.tree.map(lambda x: x.reshape(-1, 1)[:length], by_chunk)


def gradient(head: Head, hidden_TxD, unembedding_VxD, targets_T, temperature, log_normaliser_T, entropy_T, cotangents):
  """(d hidden, d unembedding, d temperature) for cotangents (a, b) of log pi(y) and of h.

  dL/dl_v = a (1[v = y] - pi_v) - b pi_v (log pi_v + h), with each block's logits recomputed.
  """
  slabs, width, count = _slabs(head, unembedding_VxD)

  def chunk(carry, inputs):
    hidden_CxD, targets_C, log_normaliser_C, entropy_C, (d_log_prob_C, d_entropy_C) = inputs

    def block(carry, index):
      d_slabs, d_temperature, d_hidden = carry
      start, columns, counted = _columns(head, index, width, slabs)
      slab = jax.lax.dynamic_slice_in_dim(slabs, start, width, axis=1)
      compute = lambda hidden, slab, temperature: _logits(head, hidden, slab, temperature, counted)
      logits, pull = jax.vjp(compute, hidden_CxD, slab, temperature)
      log_probs = logits - log_normaliser_C[:, None]
      weight = d_log_prob_C[:, None] + d_entropy_C[:, None] * (log_probs + entropy_C[:, None])
      chosen = jnp.where(_hits(columns, counted, targets_C), d_log_prob_C[:, None], 0.0)
      d_hidden_part, d_slab, d_temperature_part = pull(chosen - jnp.exp(log_probs) * weight)
      old = jax.lax.dynamic_slice_in_dim(d_slabs, start, width, axis=1)
      d_slabs = jax.lax.dynamic_update_slice_in_dim(d_slabs, old + d_slab.astype(d_slabs.dtype), start, axis=1)
      return (d_slabs, d_temperature + d_temperature_part, d_hidden + d_hidden_part), None

    start = (*carry, jnp.zeros(hidden_CxD.shape, jnp.promote_types(hidden_CxD.dtype, jnp.float32)))
    *carry, d_hidden = _over(count, block, start)
    return tuple(carry), d_hidden

  length = len(targets_T)
  start = (jnp.zeros_like(slabs, jnp.promote_types(slabs.dtype, jnp.float32)), jnp.zeros_like(temperature))
  chunks = _chunks(head, length, (hidden_TxD, targets_T, log_normaliser_T, entropy_T, cotangents))
  (d_slabs, d_temperature), d_hidden = jax.lax.scan(chunk, start, chunks)
  d_hidden = d_hidden.reshape(-1, d_hidden.shape[-1])[:length]
  d_unembedding = d_slabs.reshape(unembedding_VxD.shape)
  return d_hidden.astype(hidden_TxD.dtype), d_unembedding.astype(unembedding_VxD.dtype), d_temperature


def _chunks(head: Head, length: int, arrays):
  """Arrays [T, ...] as [N, C, ...], padded with zeros."""
  padding = -length % head.chunk_size
  fill = lambda x: jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, head.chunk_size, *x.shape[1:])
  return jax.tree.map(fill, arrays)


def _slabs(head: Head, unembedding_VxD):
  """W as [G, V / G, D], one slab per part of the vocabulary on the mesh, with (width, number) of each slab's blocks.

  Every part of the mesh then processes its own columns. Blocks have equal widths, so that few columns are computed
  twice.
  """
  parts = sharding.head_shards()
  parts = parts if unembedding_VxD.shape[0] % parts == 0 else 1
  slabs_GxSxD = unembedding_VxD.reshape(parts, -1, unembedding_VxD.shape[1])
  size = slabs_GxSxD.shape[1]
  count = -(-size // head.block)
  width = min(-(-size // count // _LANES) * _LANES, size)
  return slabs_GxSxD, width, -(-size // width)


def _columns(head: Head, index, width, slabs_GxSxD):
  """Block `index` of every slab: its start, its columns [G B], and True for columns that count [G B].

  The last block is shifted to end with its slab. Columns of an earlier block do not count, nor do columns that the head
  masks.
  """
  parts, size = slabs_GxSxD.shape[:2]
  start = jnp.minimum(index * width, size - width)
  offsets = jnp.arange(parts)[:, None] * size
  columns = offsets + start + jnp.arange(width)
  counted = columns >= offsets + index * width
  unmasked = head.counted(parts * size)
  if not unmasked.all():
    counted &= jax.lax.dynamic_slice_in_dim(jnp.asarray(unmasked.reshape(parts, size)), start, width, axis=1)
  return start, columns.reshape(-1), counted.reshape(-1)


def _logits(head: Head, hidden_CxD, slab_GxBxD, temperature, counted):
  """Logits [C, G B] of a block's columns; NONE for columns that do not count."""
  rows = slab_GxBxD.reshape(-1, slab_GxBxD.shape[-1])
  product = linear(hidden_CxD, rows, head.dtype, transpose=True)
  capped = softcap(product.astype(jnp.float32), head.softcap) / temperature
  return jnp.where(counted, capped, online_softmax.NONE)


def _hits(columns, counted, targets_C):
  """True if a column is a token's target: [C, G B]."""
  return (columns == targets_C[:, None]) & counted


def _over(count: int, block, carry):
  """The carry after all blocks; a single block needs no loop."""
  return block(carry, 0)[0] if count == 1 else jax.lax.scan(block, carry, jnp.arange(count))[0]
