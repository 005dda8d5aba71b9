"""Values to log, not to train on: three KL estimates, and entropy beside the length it grows with."""

from typing import NamedTuple

import chex
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked


class KLValues(NamedTuple):
  """k1, k2 and k3 of one or more samples, nats, each of the inputs' shape."""

  k1: Array
  k2: Array
  k3: Array


def kl_values(log_prob: Array, ref_log_prob: Array) -> KLValues:
  """Three Monte Carlo values of KL(pi || q) from samples of pi; `estimators` says how they differentiate.

      u = log pi - log q:   k1 = u,   k2 = u^2 / 2,   k3 = e^-u - 1 + u

  k1 and k3 have mean KL(pi || q); k2 only near q. k3 overflows where q is far above pi: it is a value to log.

  Source: J. Schulman, "Approximating KL divergence" (2020).

  Args:
    log_prob: any shape, log-probs of samples of pi (sequences, or single tokens), nats.
    ref_log_prob: same shape, under q, nats.

  Returns:
    `KLValues`, each of the inputs' shape.

  Raises:
    AssertionError: the two differ in shape.
  """
  chex.assert_equal_shape([log_prob, ref_log_prob])
  u = at_least_float32(log_prob) - at_least_float32(ref_log_prob)
  return KLValues(k1=u, k2=u**2 / 2, k3=jnp.expm1(-u) + u)


class Total(NamedTuple):
  """A sum and its weight: hosts and microbatches add both, and divide once."""

  sum: Array
  weight: Array


class EntropyReport(NamedTuple):
  """Entropy beside the length it grows with."""

  entropy_per_sequence: Total
  entropy_per_token: Total
  length: Total
  truncated: Total
  entropy_of_complete: Total


def entropy_report(token_entropies: Array, mask: Array, truncated: Array) -> EntropyReport:
  """Sequence entropy of sampled rows beside length and truncation; rows with no token are left out.

  Args:
    token_entropies: [N, T] entropies h_t, or -log pi(y_t) for the plain Monte Carlo value, nats.
    mask: [N, T] True on response tokens, EOS included.
    truncated: [N] True where the row ended at the length limit, without EOS.

  Returns:
    `EntropyReport`: nats a sequence, nats a token, tokens a sequence, share of truncated rows, and nats a
    sequence among the rows that ended by themselves.

  Raises:
    AssertionError: shapes do not fit.
  """
  chex.assert_rank([token_entropies, mask, truncated], [2, 2, 1])
  chex.assert_equal_shape([token_entropies, mask])
  chex.assert_equal_shape_prefix([token_entropies, truncated], 1)
  entropies = jnp.sum(masked(token_entropies, mask), axis=-1)
  lengths = jnp.sum(jnp.asarray(mask).astype(bool), axis=-1).astype(entropies.dtype)
  rows = (lengths > 0).astype(entropies.dtype)
  cut = rows * jnp.asarray(truncated).astype(bool)
  count = jnp.sum(rows)
  return EntropyReport(
    entropy_per_sequence=Total(jnp.sum(entropies), count),
    entropy_per_token=Total(jnp.sum(entropies), jnp.sum(lengths)),
    length=Total(jnp.sum(lengths), count),
    truncated=Total(jnp.sum(cut), count),
    entropy_of_complete=Total(jnp.sum(entropies * (rows - cut)), jnp.sum(rows - cut)),
  )
