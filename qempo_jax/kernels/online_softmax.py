"""Online sums over a vocabulary, one block at a time: Milakov & Gimelshein, arXiv 1805.02867, and the entropy's sum.

XLA's blocks and the kernels for TPU and GPU share this code, also to merge the parts of a vocabulary of several
programs or devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Logit of a column that is not a token. It is finite, so that differences of two are not NaN; the first real logit
# turns the contributions of such columns into 0.
NONE = -1e30


class Sums(NamedTuple):
  """Sums over the logits l so far, per token; each [C, 1], float32.

  Attributes:
    top: max l.
    total: sum exp(l - top).
    weighted: sum exp(l - top) (l - top).
    chosen: the target's l; 0 before its block.
  """

  top: jax.Array
  total: jax.Array
  weighted: jax.Array
  chosen: jax.Array


def nothing(count: int) -> Sums:
  """Sums of `count` tokens before any logit."""
  return Sums(jnp.full((count, 1), NONE, jnp.float32), *(jnp.zeros((count, 1), jnp.float32) for _ in range(3)))


def add(sums: Sums, logits_CxB, hits_CxB) -> Sums:
  """The sums with one more block of logits, `NONE` for columns that are not tokens; hits are True at the target."""
  over = lambda x: jnp.sum(x, axis=1, keepdims=True)
  top = jnp.maximum(sums.top, jnp.max(logits_CxB, axis=1, keepdims=True))
  shifted = logits_CxB - top
  exps = jnp.exp(shifted)
  before = _rescaled(sums, top)
  chosen = before.chosen + over(jnp.where(hits_CxB, logits_CxB, 0.0))
  return Sums(top, before.total + over(exps), before.weighted + over(exps * shifted), chosen)


def merge(parts: Sums) -> Sums:
  """Sums of a whole from those of its parts, which lie along a first axis: [S, ...] -> [...]."""
  top = jnp.max(parts.top, axis=0)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), _rescaled(parts, top))._replace(top=top)


def finish(sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(log-prob of the target, entropy, log of the normaliser), each in the sums' shape, nats."""
  log_total = jnp.log(sums.total)
  # H = log Z - sum_v p_v l_v, both relative to the top so that neither is large.
  return sums.chosen - sums.top - log_total, log_total - sums.weighted / sums.total, sums.top + log_total


def _rescaled(sums: Sums, top) -> Sums:
  """The same sums relative to another top, no lower than theirs."""
  down = sums.top - top
  factor = jnp.exp(down)
  return Sums(top, sums.total * factor, (sums.weighted + sums.total * down) * factor, sums.chosen)
