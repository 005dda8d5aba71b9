"""One token from next-token logits, with its log-probability and their entropy, in three passes over the vocabulary."""

import jax
import jax.numpy as jnp

from qempo_jax.token_stats import TokenStats


@jax.named_scope("draw")
def draw(uniform, logits, *, block=256):
  """Draws from softmax(logits) by inverting its cumulative sum, first over blocks, then within one.

  With e_v = exp(l_v - max l):   log pi(y) = l_y - max l - log sum e,   h = log sum e - sum e (l - max l) / sum e

  One random number a draw, where the Gumbel trick needs one for every token of the vocabulary.

  Args:
    uniform: [...] in [0, 1).
    logits: [..., V], -inf on what is never drawn.
    block: tokens a block.

  Returns:
    ([...] token ids, TokenStats of shape [...] in nats).
  """
  padding = [(0, 0)] * uniform.ndim + [(0, -logits.shape[-1] % (2 * block))]
  blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*uniform.shape, -1, block)
  top = jnp.max(jnp.max(blocks, axis=-1), axis=-1)[..., None]
  mass = jnp.cumsum(jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1), axis=-1)
  total = mass[..., -1]
  # In wider blocks, and their sums kept apart from the sum of them: XLA would join two sums of one shape, or a sum of
  # sums, in loops that CPUs run slowly.
  shifted = jnp.maximum(blocks.reshape(*uniform.shape, -1, 2 * block) - top[..., None], _LOWEST)
  moment = jnp.sum(jax.lax.optimization_barrier(jnp.sum(jnp.exp(shifted) * shifted, axis=-1)), axis=-1)

  point = uniform[..., None] * total[..., None]
  chosen = jnp.argmax(mass > point, axis=-1)[..., None]
  before = jnp.where(chosen > 0, jnp.take_along_axis(mass, jnp.maximum(chosen - 1, 0), axis=-1), 0)
  within = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)[..., 0, :] - top
  inside = jnp.cumsum(jnp.exp(within), axis=-1)
  # Rounding can leave the point at the very end of its block: keep it below the block's own mass.
  point = jnp.minimum(point - before, inside[..., -1:] * (1 - 1e-6))
  place = jnp.argmax(inside > point, axis=-1)
  log_prob = jnp.take_along_axis(within, place[..., None], axis=-1)[..., 0] - jnp.log(total)
  return chosen[..., 0] * block + place, TokenStats(log_prob, jnp.log(total) - moment / total)


# What -inf is replaced by where it meets its own exponential: e^x x is 0 there too.
_LOWEST = -1e4
