"""Log-probability and entropy of every token from hidden states, without a [tokens, vocabulary] array."""

from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qempo_jax.linear import linear


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
) -> TokenStats:
  """Log-probability and entropy of next-token distributions, chunk by chunk.

  log pi(y_t) = l_{y_t} - logsumexp(l),   h_t = logsumexp(l) - sum_v pi_v l_v,   l = softcap(hidden W') / temperature

  Each chunk's logits are recomputed in the backward pass, so that memory is chunk_size * V at most.

  Args:
    hidden: [T, D] final hidden states.
    unembedding: [V, D] output projection W.
    targets: [T] token ids.
    temperature: divides the logits; the sampler's own, so that scores belong to what was sampled.
    chunk_size: tokens a chunk.
    compute_dtype: what the product's operands are rounded to; its sums are float32.
    logit_softcap: of the decoder's logits, before the temperature; None where it has none.
    num_tokens: columns of V that stand for tokens; later ones only pad the vocabulary. None for all.

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

  @jax.checkpoint
  def chunk(inputs: tuple[jax.Array, jax.Array]) -> TokenStats:
    hidden_CxD, targets_C = inputs
    logits = linear(hidden_CxD, unembedding, compute_dtype, transpose=True)
    logits = mask_columns(softcap(logits, logit_softcap), num_tokens)
    return from_logits(logits / temperature, targets_C)

  stats = jax.lax.map(chunk, (hidden, targets))
  return jax.tree.map(lambda x: x.reshape(-1)[:length], stats)
