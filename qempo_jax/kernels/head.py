"""What is fixed about an output projection, and what its products become: soft-capped, divided by the temperature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Head(NamedTuple):
  """What of the head is static.

  Attributes:
    dtype: of the product's operands, by name.
    softcap: of the logits, or None.
    num_tokens: columns that stand for tokens, or None for all.
    chunk_size: tokens of a chunk of XLA's blocks.
    block: columns of one of XLA's blocks.
    kernel: what sums over the vocabulary: "xla", "tpu" or "gpu".
    interpret: run a kernel step by step, on any device.
    forbidden: ids among them that no distribution gives anything.
  """

  dtype: str
  softcap: float | None
  num_tokens: int | None
  chunk_size: int
  block: int
  kernel: str = "xla"
  interpret: bool = False
  forbidden: tuple[int, ...] = ()

  def counted(self, vocab_size: int) -> np.ndarray:
    """True for the columns that distributions are over: [V] bool."""
    return counted_columns(vocab_size, self.num_tokens, self.forbidden)


def counted_columns(vocab_size: int, num_tokens: int | None, forbidden: tuple[int, ...]) -> np.ndarray:
  """The one mask of sampler and scorer: [V] bool, False from `num_tokens` on and for `forbidden` ids."""
  counted = np.arange(vocab_size) < (vocab_size if num_tokens is None else num_tokens)
  counted[list(forbidden)] = False
  return counted


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap tanh(x / cap), which keeps x within (-cap, cap) (arXiv 2408.00118); x itself where `cap` is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)
