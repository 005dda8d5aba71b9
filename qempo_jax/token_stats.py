"""Log-prob and entropy of every token from hidden states, without a [tokens, vocabulary] array."""

import functools
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import sharding
from qempo_jax.kernels import blocks
from qempo_jax.kernels import choice
from qempo_jax.kernels import online_softmax
from qempo_jax.kernels.head import Head
from qempo_jax.kernels.head import counted_columns
from qempo_jax.kernels.head import softcap as softcap
from qempo_jax.linear import linear
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform

# Logits in memory at once, 16 MiB: products run as fast as on whole vocabularies.
MAX_LOGITS = 2**22
# The same over whole vocabularies, for transformed logits, 64 MiB: fewer tokens at a time would leave products of few rows.
MAX_TRANSFORMED_LOGITS = 2**24


class TokenStats(NamedTuple):
  """Log-probs and entropies of tokens, nats.

  Attributes:
    log_prob: log pi(token | past).
    entropy: entropy of the whole next-token distribution.
  """

  log_prob: jax.Array
  entropy: jax.Array

  @property
  def router_loss(self) -> None:
    """None: the policy has no mixture of experts."""
    return None


class MixtureStats(NamedTuple):
  """`TokenStats` of a mixture of experts.

  Attributes:
    log_prob: log pi(token | past), nats.
    entropy: entropy of the whole next-token distribution, nats.
    router_loss: load-balancing loss of the routers over all rows scored together, repeated for each prompt [P].
  """

  log_prob: jax.Array
  entropy: jax.Array
  router_loss: jax.Array


def mask_columns(logits: jax.Array, num_tokens: int | None, forbidden: tuple[int, ...] = ()) -> jax.Array:
  """Logits [..., V] with -inf in padding columns, from `num_tokens` on, and in `forbidden` ones."""
  kept = counted_columns(logits.shape[-1], num_tokens, forbidden)
  return logits if kept.all() else jnp.where(jnp.asarray(kept), logits, -jnp.inf)


def from_logits(logits: jax.Array, targets: jax.Array) -> TokenStats:
  """Log-prob of the targets and entropy, from logits [..., V] and targets [...]."""
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
  forbidden: tuple[int, ...] = (),
  max_logits: int = MAX_LOGITS,
  implementation: str = "auto",
  transform: LogitTransform = PLAIN,
  lengths: jax.Array | None = None,
) -> TokenStats:
  """Log-prob and entropy of next-token distributions, a block of the logits at a time.

  log pi(y_t) = l_{y_t} - logsumexp(l),   h_t = logsumexp(l) - sum_v pi_v l_v,   l = softcap(hidden W') / temperature

  Neither the value nor the gradient holds more than `chunk_size` tokens' logits, nor more than `max_logits` of them.
  The sums over the vocabulary are carried from block to block, and the backward pass recomputes each block with

      dL/dl_v = a (1[v = y] - pi_v) - b pi_v (log pi_v + h),     a, b the cotangents of log pi(y) and of h

  after Milakov & Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867. Only reverse mode is
  defined: `jax.jvp` raises a TypeError; forward derivatives are those of `from_logits`, on whole logits.

  Args:
    hidden: [T, D] final hidden states.
    unembedding: [V, D] output projection W.
    targets: [T] token ids.
    temperature: divisor of the logits; use the sampling temperature, so that scores belong to the sampled distribution.
    chunk_size: tokens of a chunk.
    compute_dtype: dtype of the product's operands; its sums are float32.
    logit_softcap: soft-cap of the decoder's logits, before the temperature; None: none.
    num_tokens: number of columns of V that are tokens; later ones are padding. None: all.
    forbidden: ids of tokens without probability; log pi of such a target is -inf.
    max_logits: logits of a chunk's block of the vocabulary, on each part of the vocabulary.
    implementation: implementation of the forward sums: "xla", "pallas" (a kernel for TPU or GPU with a tile of logits
      in fast memory, which needs neither size), or "auto": `kernels.choice`.
    transform: bias, minimum length and truncation of the policy. The targets are its samples, so they count as kept. A
      transform that acts is computed by XLA, over the whole vocabulary of fewer tokens at a time.
    lengths: [T] response tokens before each target; read with a transform that acts.

  Returns:
    TokenStats of shape [T], float32, nats.

  Raises:
    InputError: "pallas" is requested and cannot compute this here.
  """
  chex.assert_rank([hidden, unembedding, targets], [2, 2, 1])
  chex.assert_equal_shape_prefix([hidden, targets], 1)
  if transform.acts:
    chex.assert_equal_shape([targets, lengths])
    logits_of = lambda hidden, unembedding: mask_columns(
      softcap(linear(hidden, unembedding, compute_dtype, transpose=True).astype(jnp.float32), logit_softcap),
      num_tokens,
      forbidden,
    )
    policy_of = functools.partial(transform, temperature=jnp.asarray(temperature, jnp.float32))
    chunk_size = max(1, min(chunk_size, targets.shape[0], MAX_TRANSFORMED_LOGITS // unembedding.shape[0]))
    return _transformed_stats(logits_of, policy_of, hidden, unembedding, targets, lengths, chunk_size)
  kernel = choice.chosen(implementation, sharding.platform(), hidden, unembedding, compute_dtype)
  chunk_size = min(chunk_size, targets.shape[0])
  block = max(1, max_logits // chunk_size)
  head = Head(jnp.dtype(compute_dtype).name, logit_softcap, num_tokens, chunk_size, block, kernel, forbidden=forbidden)
  return _token_stats(head, hidden, unembedding, targets, jnp.asarray(temperature, jnp.float32))


@jax.named_scope("token_stats")
def _transformed_stats(logits_of, policy_of, hidden, unembedding, targets, lengths, chunk_size) -> TokenStats:
  """TokenStats from whole vocabularies, `chunk_size` tokens at a time; the backward pass recomputes each chunk."""
  length = targets.shape[0]
  fill = lambda x: jnp.pad(x, ((0, -length % chunk_size), *((0, 0),) * (x.ndim - 1)))
  chunks = jax.tree.map(lambda x: fill(x).reshape(-1, chunk_size, *x.shape[1:]), (hidden, targets, lengths))
  # In float32, so that gradients of chunks are summed in it.
  matrix = unembedding.astype(jnp.promote_types(unembedding.dtype, jnp.float32))

  @jax.checkpoint
  def chunk(matrix, hidden_CxD, targets_C, lengths_C):
    logits = policy_of(logits_of(hidden_CxD, matrix), length=lengths_C, sampled=targets_C)
    return from_logits(logits, targets_C)

  by_chunk = jax.lax.map(lambda arrays: chunk(matrix, *arrays), chunks)
  return jax.tree.map(lambda x: x.reshape(-1)[:length], by_chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_stats(
  head: Head, hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, temperature: jax.Array
) -> TokenStats:
  return _forward(head, hidden, unembedding, targets, temperature)[0]


@jax.named_scope("token_stats")
def _forward(head: Head, hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, temperature: jax.Array):
  sums = (blocks.sums if head.kernel == "xla" else choice.kernel_sums)(head, hidden, unembedding, targets, temperature)
  log_prob, entropy, log_normaliser = (x[:, 0] for x in online_softmax.finish(sums))
  counted = head.counted(unembedding.shape[0])
  if not counted.all():
    log_prob = jnp.where(jnp.asarray(counted)[targets], log_prob, -jnp.inf)
  return TokenStats(log_prob, entropy), (hidden, unembedding, targets, temperature, log_normaliser, entropy)


@jax.named_scope("token_stats")
def _backward(head: Head, residuals: tuple, cotangents: TokenStats):
  d_hidden, d_unembedding, d_temperature = blocks.gradient(head, *residuals, cotangents)
  return d_hidden, d_unembedding, np.zeros(residuals[2].shape, jax.dtypes.float0), d_temperature


_token_stats.defvjp(_forward, _backward)
