"""Static settings of an output projection, and the soft-cap of its products."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Head(NamedTuple):
  """Static settings of the output projection.

  Attributes:
    dtype: dtype of the product's operands, by name.
    softcap: soft-cap of the logits, or None.
    num_tokens: number of columns that are tokens; None: all.
    chunk_size: tokens of a chunk of XLA's blocks.
    block: columns of one of XLA's blocks.
    kernel: implementation of the sums over the vocabulary: "xla", "tpu" or "gpu".
    interpret: run a kernel in interpreter mode, on any device.
    forbidden: ids of tokens without probability.
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
    """[V] bool, True for the columns that distributions are over."""
    return counted_columns(vocab_size, self.num_tokens, self.forbidden)


def counted_columns(vocab_size: int, num_tokens: int | None, forbidden: tuple[int, ...]) -> np.ndarray:
  """The common mask of sampler and scorer: [V] bool, False from `num_tokens` on and for `forbidden` ids."""
  counted = np.arange(vocab_size) < (vocab_size if num_tokens is None else num_tokens)
  counted[list(forbidden)] = False
  return counted


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap tanh(x / cap), which keeps x within (-cap, cap) (arXiv 2408.00118); x if `cap` is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)
