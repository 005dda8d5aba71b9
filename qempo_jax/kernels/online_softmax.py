"""Sums over a vocabulary that is seen a block at a time: Milakov & Gimelshein, arXiv 1805.02867, and the entropy's sum.

The same few lines serve XLA's blocks and the kernels for TPU and GPU, and join the parts of a vocabulary that several
programs or devices have seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The logit of a column that stands for no token. Finite, so that differences of two are no NaN; a first real logit
# turns whatever such columns have added into 0.
NONE = -1e30


class Sums(NamedTuple):
  """Of the logits l seen so far, per token; each [C, 1], float32.

  Attributes:
    top: max l.
    total: sum exp(l - top).
    weighted: sum exp(l - top) (l - top).
    chosen: the target's l; 0 where it has not been seen.
  """

  top: jax.Array
  total: jax.Array
  weighted: jax.Array
  chosen: jax.Array


def nothing(count: int) -> Sums:
  """The sums of `count` tokens before any logit."""
  return Sums(jnp.full((count, 1), NONE, jnp.float32), *(jnp.zeros((count, 1), jnp.float32) for _ in range(3)))


def add(sums: Sums, logits_CxB, hits_CxB) -> Sums:
  """The sums with a block of logits more, `NONE` for columns that are no tokens; hits are true at the target."""
  over = lambda x: jnp.sum(x, axis=1, keepdims=True)
  top = jnp.maximum(sums.top, jnp.max(logits_CxB, axis=1, keepdims=True))
  shifted = logits_CxB - top
  exps = jnp.exp(shifted)
  before = _moved(sums, top)
  chosen = before.chosen + over(jnp.where(hits_CxB, logits_CxB, 0.0))
  return Sums(top, before.total + over(exps), before.weighted + over(exps * shifted), chosen)


def merge(parts: Sums) -> Sums:
  """The sums of a whole from those of its parts, which lie along a first axis: [S, ...] -> [...]."""
  top = jnp.max(parts.top, axis=0)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), _moved(parts, top))._replace(top=top)


def finish(sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(log-probability of the target, entropy, log of the normaliser), each in the sums' shape, nats."""
  log_total = jnp.log(sums.total)
  # H = log Z - sum_v p_v l_v, both counted from the top so that neither is large.
  return sums.chosen - sums.top - log_total, log_total - sums.weighted / sums.total, sums.top + log_total


def _moved(sums: Sums, top) -> Sums:
  """The same sums counted from another top, no lower than theirs."""
  down = sums.top - top
  factor = jnp.exp(down)
  return Sums(top, sums.total * factor, (sums.weighted + sums.total * down) * factor, sums.chosen)
