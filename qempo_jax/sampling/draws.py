"""Draws one token from next-token logits, with its log-prob and their entropy, in three passes over the vocabulary."""

import jax
import jax.numpy as jnp

from qempo_jax.token_stats import TokenStats

# Unit of integer probabilities, 1 / 2^30, so that their sums are exact.
_ONE = 2**30


@jax.named_scope("draw")
def draw(bits, logits, *, block=256):
  """Draws from softmax(logits) by inverting its cumulative sum, first over blocks, then within one.

  With e_v = exp(l_v - max l):   log pi(y) = l_y - max l - log sum e,   h = log sum e - sum e (l - max l) / sum e

  A draw takes two random numbers; the Gumbel trick needs one for every token of the vocabulary. Both cumulative sums
  are over integers, shares rounded to 2^-30, so that they increase only at tokens with probability, in any order of
  summation. The total-variation distance to the softmax is below V 2^-32 plus the rounding of the exponentials, about
  1e-7.

  Args:
    bits: [..., 2] random uint32.
    logits: [..., V], -inf for tokens that are never drawn.
    block: tokens a block.

  Returns:
    ([...] token ids, TokenStats of shape [...] in nats).
  """
  batch = bits.shape[:-1]
  padding = [(0, 0)] * len(batch) + [(0, -logits.shape[-1] % (2 * block))]
  blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*batch, -1, block)
  top = jnp.max(jnp.max(blocks, axis=-1), axis=-1)[..., None]
  # A barrier keeps the sums of blocks apart from their total: XLA would fuse two sums of one shape, or a sum of sums,
  # into loops that CPUs run slowly.
  masses = jax.lax.optimization_barrier(jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1))
  total = jnp.sum(masses, axis=-1)
  # Wider blocks, so that this sum is not fused with the one above either.
  shifted = jnp.maximum(blocks.reshape(*batch, -1, 2 * block) - top[..., None], _LOWEST)
  moment = jnp.sum(jax.lax.optimization_barrier(jnp.sum(jnp.exp(shifted) * shifted, axis=-1)), axis=-1)

  chosen = pick(bits[..., 1], masses)[..., None]
  within = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)[..., 0, :] - top
  index = pick(bits[..., 0], jnp.exp(within))
  log_prob = jnp.take_along_axis(within, index[..., None], axis=-1)[..., 0] - jnp.log(total)
  return chosen[..., 0] * block + index, TokenStats(log_prob, jnp.log(total) - moment / total)


def pick(bits, masses):
  """Indices [...] drawn in proportion to masses [..., N], with one random uint32 each."""
  ends = shares(masses)
  return jnp.argmax(ends > _scaled(bits, ends[..., -1])[..., None], axis=-1)


def shares(masses):
  """Cumulative shares [..., N] of masses [..., N], int32, in units of about 2^-30 of their sum."""
  unit = _ONE / jnp.sum(masses, axis=-1, keepdims=True)
  return jnp.cumsum(jnp.round(masses * unit).astype(jnp.int32), axis=-1)


def _scaled(bits, count):
  """floor(bits count / 2^32) as int32, in [0, count), from products of 16-bit halves."""
  high = lambda x: x >> 16
  low = lambda x: x & 0xFFFF
  count = count.astype(jnp.uint32)
  middle = high(bits) * low(count) + high(low(bits) * low(count))
  other = low(bits) * high(count) + low(middle)
  return (high(bits) * high(count) + high(middle) + high(other)).astype(jnp.int32)


# Replacement of -inf in products with its own exponential: e^x x is 0 there too.
_LOWEST = -1e4
