"""Log-probability and entropy of every token from hidden states, without a [tokens, vocabulary] array."""

import functools
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import sharding
from qempo_jax.linear import linear

# Logits that exist at once: 64 MiB of them, a size at which products run as fast as on whole vocabularies.
MAX_LOGITS = 2**24


class TokenStats(NamedTuple):
  """Per token, in nats.

  Attributes:
    log_prob: log pi(token | past).
    entropy: entropy of the whole next-token distribution.
  """

  log_prob: jax.Array
  entropy: jax.Array


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap tanh(x / cap), which keeps x within (-cap, cap) (arXiv 2408.00118); x itself where `cap` is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def mask_columns(logits: jax.Array, num_tokens: int | None) -> jax.Array:
  """Logits [..., V] with -inf in the columns from `num_tokens` on, which stand for no token; None has none such."""
  if num_tokens is None or num_tokens == logits.shape[-1]:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < num_tokens, logits, -jnp.inf)


def from_logits(logits: jax.Array, targets: jax.Array) -> TokenStats:
  """Log-probability of the targets and entropy, from logits [..., V] and targets [...]."""
  logits = logits.astype(jnp.float32)
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  log_prob = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_normaliser
  # H = log Z - sum_v p_v l_v, with 0 log 0 = 0 for logits of -inf, in value and in gradient.
  probs = jnp.exp(logits - log_normaliser[..., None])
  entropy = log_normaliser - jnp.sum(probs * jnp.where(probs > 0, logits, 0.0), axis=-1)
  return TokenStats(log_prob, entropy)


def token_stats(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    *,
    temperature: chex.Numeric,
    chunk_size: int,
    compute_dtype: Any = jnp.float32,
    logit_softcap: float | None = None,
    num_tokens: int | None = None,
    max_logits: int = MAX_LOGITS,
) -> TokenStats:
  """Log-probability and entropy of next-token distributions, a block of the logits at a time.

  log pi(y_t) = l_{y_t} - logsumexp(l),   h_t = logsumexp(l) - sum_v pi_v l_v,   l = softcap(hidden W') / temperature

  Neither this nor its gradient holds more than `chunk_size` tokens' logits, nor more than `max_logits` of them: the
  sums over the vocabulary are carried from block to block, and the backward pass computes each block again with

      dL/dl_v = a (1[v = y] - pi_v) - b pi_v (log pi_v + h),     a, b the cotangents of log pi(y) and of h

  after Milakov & Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867.

  Args:
    hidden: [T, D] final hidden states.
    unembedding: [V, D] output projection W.
    targets: [T] token ids.
    temperature: divides the logits; the sampler's own, so that scores belong to what was sampled.
    chunk_size: tokens a chunk.
    compute_dtype: what the product's operands are rounded to; its sums are float32.
    logit_softcap: of the decoder's logits, before the temperature; None where it has none.
    num_tokens: columns of V that stand for tokens; later ones only pad the vocabulary. None for all.
    max_logits: how many logits a chunk's block of the vocabulary has, on each part of the vocabulary.

  Returns:
    TokenStats of shape [T], float32, nats.
  """
  chex.assert_rank([hidden, unembedding, targets], [2, 2, 1])
  chex.assert_equal_shape_prefix([hidden, targets], 1)
  length = targets.shape[0]
  chunk_size = min(chunk_size, length)
  padding = -length % chunk_size
  hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk_size, hidden.shape[1])
  targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk_size)
  head = _Head(jnp.dtype(compute_dtype).name, logit_softcap, num_tokens, max(1, max_logits // chunk_size))
  stats = _in_blocks(head, hidden, unembedding, targets, jnp.asarray(temperature, jnp.float32))
  return jax.tree.map(lambda x: x.reshape(-1)[:length], stats)


class _Head(NamedTuple):
  """What of the head is static: dtype of the operands, soft-cap, columns that are tokens, columns a block."""

  dtype: str
  softcap: float | None
  num_tokens: int | None
  block: int

  def logits(self, hidden_CxD, slab_GxBxD, temperature, columns_GxB, first_G):
    """Logits [C, G B] of some columns, -inf where one stands for no token or for one that an earlier block had."""
    rows = slab_GxBxD.reshape(-1, slab_GxBxD.shape[-1])
    product = linear(hidden_CxD, rows, self.dtype, transpose=True)
    capped = softcap(product.astype(jnp.float32), self.softcap) / temperature
    counted = columns_GxB >= first_G[:, None]
    if self.num_tokens is not None:
      counted &= columns_GxB < self.num_tokens
    return jnp.where(counted.reshape(-1), capped, -jnp.inf)


def _blocks(head: _Head, unembedding_VxD):
  """W as [G, V / G, D], one slab for each part of the vocabulary on the mesh, and (width, number) of each slab's blocks.

  Every part of the mesh then works on the columns that it has.
  """
  parts = sharding.head_shards()
  parts = parts if unembedding_VxD.shape[0] % parts == 0 else 1
  slabs_GxSxD = unembedding_VxD.reshape(parts, -1, unembedding_VxD.shape[1])
  size = slabs_GxSxD.shape[1]
  width = min(head.block, size)
  return slabs_GxSxD, width, -(-size // width)


def _columns(index, width, slabs_GxSxD):
  """Block `index` of every slab: (its place, its columns [G, B], the first that earlier blocks did not have [G]).

  The last block is moved back to end with its slab.
  """
  parts, size = slabs_GxSxD.shape[:2]
  start = jnp.minimum(index * width, size - width)
  offsets = jnp.arange(parts) * size
  return start, offsets[:, None] + start + jnp.arange(width), offsets + index * width


def _hits(columns_GxB, targets_C):
  """Where a column is a token's target: [C, G B]."""
  return columns_GxB.reshape(-1) == targets_C[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(head, hidden, unembedding, targets, temperature):
  return _forward(head, hidden, unembedding, targets, temperature)[0]


def _forward(head, hidden_NxCxD, unembedding, targets_NxC, temperature):
  slabs, width, count = _blocks(head, unembedding)

  def chunk(inputs):
    hidden_CxD, targets_C = inputs

    def block(carry, index):
      top, total, weighted, chosen = carry
      start, columns, first = _columns(index, width, slabs)
      slab = jax.lax.dynamic_slice_in_dim(slabs, start, width, axis=1)
      logits = head.logits(hidden_CxD, slab, temperature, columns, first)
      new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
      shift = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
      rescale, exps = jnp.exp(top - shift), jnp.exp(logits - shift[:, None])
      # With 0 (-inf) = 0 for columns that are no tokens; sums of exp(l - top) (l - top), which stay small.
      shifted = jnp.where(exps > 0, logits - shift[:, None], 0.0)
      moved = jnp.where(total > 0, weighted + total * (top - shift), 0.0)
      return (
          new_top,
          total * rescale + jnp.sum(exps, axis=-1),
          moved * rescale + jnp.sum(exps * shifted, axis=-1),
          chosen + jnp.sum(jnp.where(_hits(columns, targets_C) & jnp.isfinite(logits), logits, 0.0), axis=-1),
      ), None

    zero = jnp.zeros_like(hidden_CxD[:, 0], jnp.float32)
    carry = (zero - jnp.inf, zero, zero, zero)
    top, total, weighted, chosen = block(carry, 0)[0] if count == 1 else jax.lax.scan(block, carry, jnp.arange(count))[0]
    log_normaliser = top + jnp.log(total)
    missing = _is_no_token(head, targets_C)
    log_prob = jnp.where(missing, -jnp.inf, chosen - log_normaliser)
    return TokenStats(log_prob, jnp.log(total) - weighted / total), log_normaliser

  stats, log_normalisers = jax.lax.map(chunk, (hidden_NxCxD, targets_NxC))
  return stats, (hidden_NxCxD, unembedding, targets_NxC, temperature, log_normalisers, stats.entropy)


def _is_no_token(head, targets):
  return targets >= head.num_tokens if head.num_tokens is not None else jnp.zeros_like(targets, bool)


def _backward(head, residuals, cotangents):
  hidden_NxCxD, unembedding, targets_NxC, temperature, log_normalisers, entropies = residuals
  slabs, width, count = _blocks(head, unembedding)

  def chunk(carry, inputs):
    hidden_CxD, targets_C, log_normaliser_C, entropy_C, (of_log_prob_C, of_entropy_C) = inputs

    def block(carry, index):
      d_slabs, d_temperature, d_hidden = carry
      start, columns, first = _columns(index, width, slabs)
      slab = jax.lax.dynamic_slice_in_dim(slabs, start, width, axis=1)
      compute = lambda hidden, slab, temperature: head.logits(hidden, slab, temperature, columns, first)
      logits, pull = jax.vjp(compute, hidden_CxD, slab, temperature)
      log_probs = logits - log_normaliser_C[:, None]
      probs = jnp.exp(log_probs)
      surprise = jnp.where(probs > 0, log_probs + entropy_C[:, None], 0.0)
      chosen = jnp.where(_hits(columns, targets_C) & jnp.isfinite(logits), of_log_prob_C[:, None], 0.0)
      slope = chosen - probs * (of_log_prob_C[:, None] + of_entropy_C[:, None] * surprise)
      d_hidden_part, d_slab, d_temperature_part = pull(slope)
      old = jax.lax.dynamic_slice_in_dim(d_slabs, start, width, axis=1)
      d_slabs = jax.lax.dynamic_update_slice_in_dim(d_slabs, old + d_slab.astype(d_slabs.dtype), start, axis=1)
      return (d_slabs, d_temperature + d_temperature_part, d_hidden + d_hidden_part), None

    carry = (*carry, jnp.zeros(hidden_CxD.shape, jnp.promote_types(hidden_CxD.dtype, jnp.float32)))
    carry = block(carry, 0)[0] if count == 1 else jax.lax.scan(block, carry, jnp.arange(count))[0]
    return carry[:2], carry[2]

  start = (jnp.zeros_like(slabs, jnp.promote_types(slabs.dtype, jnp.float32)), jnp.zeros_like(temperature))
  inputs = (hidden_NxCxD, targets_NxC, log_normalisers, entropies, cotangents)
  (d_slabs, d_temperature), d_hidden = jax.lax.scan(chunk, start, inputs)
  d_unembedding = d_slabs.reshape(unembedding.shape).astype(unembedding.dtype)
  return d_hidden.astype(hidden_NxCxD.dtype), d_unembedding, np.zeros(targets_NxC.shape, jax.dtypes.float0), d_temperature


_in_blocks.defvjp(_forward, _backward)
