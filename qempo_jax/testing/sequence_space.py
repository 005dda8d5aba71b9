"""All sequences that an autoregressive policy can produce, and the tree of their prefixes."""

import functools
import itertools
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
import numpy as np

EOS = 0


class SequenceSpace(NamedTuple):
  """N distinct sequences of at most T tokens, none a prefix of another; host constants.

  Attributes:
    tokens: [N, T] token ids; zero on padding.
    mask: [N, T] True on the sequence's tokens, EOS included.
    truncated: [N] True if the sequence ends without EOS.
    prefix: [N, T] index of the prefix before each token, in 0 ... num_prefixes - 1.
    witness: [num_prefixes, V, 2] a (sequence, position) with each token after each prefix; -1 if there is none.
  """

  tokens: np.ndarray
  mask: np.ndarray
  truncated: np.ndarray
  prefix: np.ndarray
  witness: np.ndarray

  @property
  def num_sequences(self) -> int:
    """N."""
    return self.tokens.shape[0]

  @property
  def max_length(self) -> int:
    """T, tokens."""
    return self.tokens.shape[1]

  @property
  def vocab_size(self) -> int:
    """V, EOS included."""
    return self.witness.shape[1]

  @property
  def num_prefixes(self) -> int:
    """Number of prefixes that some sequence continues."""
    return self.witness.shape[0]

  @property
  def lengths(self) -> np.ndarray:
    """[N] tokens of each sequence, EOS included."""
    return self.mask.sum(axis=1)

  def gather_tokens(self, prefix_log_probs: Array) -> Array:
    """Each sequence's own token log-probs, [N, T], from next-token log-probs of each prefix, [prefixes, V]."""
    return jnp.where(self.mask, prefix_log_probs[self.prefix, self.tokens], 0.0)

  def next_tokens(self, token_log_probs: Array) -> Array:
    """Inverse of `gather_tokens` along the sequences: [N, T] -> [N, T, V]; -inf if no sequence continues so."""
    row, position = self.witness[..., 0], self.witness[..., 1]
    by_prefix = jnp.where(row >= 0, token_log_probs[row, position], -jnp.inf)
    return jnp.where(self.mask[..., None], by_prefix[self.prefix], -jnp.inf)

  def table_logits(self, log_probs: Array) -> Array:
    """[num_prefixes, V] logits of the table policy whose sequences have these [N] log-probs."""
    mass = jnp.where(self.mask, jnp.exp(log_probs)[:, None], 0.0)
    return jnp.log(jnp.zeros(self.witness.shape[:2], mass.dtype).at[self.prefix, self.tokens].add(mass))

  def prefix_features(self) -> np.ndarray:
    """[num_prefixes, 1 + T V] a constant and the one-hot tokens of each prefix."""
    features = np.zeros((self.num_prefixes, 1 + self.max_length * self.vocab_size))
    features[:, 0] = 1
    for n, t in zip(*np.nonzero(self.mask), strict=True):
      for j in range(t):
        features[self.prefix[n, t], 1 + j * self.vocab_size + self.tokens[n, j]] = 1
    return features


@functools.cache
def sequence_space(vocab_size: int, max_length: int) -> SequenceSpace:
  """All sequences over `vocab_size` tokens, EOS = 0 included, truncated at `max_length` tokens.

  Args:
    vocab_size: V >= 2, EOS included.
    max_length: T >= 1, tokens.

  Returns:
    `SequenceSpace` of sum_{t<T} (V-1)^t sequences that end with EOS and (V-1)^T truncated ones.
  """
  words = range(1, vocab_size)
  ended = [(*body, EOS) for t in range(max_length) for body in itertools.product(words, repeat=t)]
  truncated = list(itertools.product(words, repeat=max_length))
  return space_of_sequences(ended + truncated, vocab_size)


def space_of_sequences(sequences: list[tuple[int, ...]], vocab_size: int) -> SequenceSpace:
  """A space of given sequences, none a prefix of another.

  Args:
    sequences: N tuples of token ids below `vocab_size`; EOS = 0 only at the end.
    vocab_size: V.

  Returns:
    `SequenceSpace` with T the longest sequence's length.

  Raises:
    ValueError: one sequence is a prefix of another, or is repeated.
  """
  n, t = len(sequences), max(map(len, sequences))
  tokens, mask = np.zeros((n, t), np.int32), np.zeros((n, t), bool)
  prefix, prefixes, witness = np.zeros((n, t), np.int32), {}, []
  for i, sequence in enumerate(sequences):
    tokens[i, : len(sequence)], mask[i, : len(sequence)] = sequence, True
    for j, token in enumerate(sequence):
      k = prefix[i, j] = prefixes.setdefault(sequence[:j], len(prefixes))
      if k == len(witness):
        witness.append(np.full((vocab_size, 2), -1, np.int32))
      witness[k][token] = (i, j)
  if len(set(sequences)) < n or any(sequence in prefixes for sequence in sequences):
    raise ValueError("sequences must be distinct, and none the beginning of another")
  truncated = np.array([sequence[-1] != EOS for sequence in sequences])
  return SequenceSpace(tokens, mask, truncated, prefix, np.stack(witness))
