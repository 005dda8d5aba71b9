"""Transform from a decoder's logits to the policy's next-token distribution, which sampler and scorer share.

In the order of `transformers.generate`: logit bias, minimum length, temperature, top-k, top-p, min-p. The last three keep
the tokens above a threshold, the kept set K of a prefix. The policy is then pi(v) = softmax(l)_v / softmax(l)(K) on K and 0
elsewhere; its log-probs, entropies and gradients are those of this truncated policy, with K held constant.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


class LogitTransform(NamedTuple):
  """Static settings of the transform; the default changes nothing but the temperature.

  Attributes:
    top_k: size of the kept set; 0: no limit. Tokens that tie with the last one are kept.
    top_p: least probability of the kept set, which is the smallest such set of likeliest tokens, with ties; 1: all.
    min_p: least probability of a kept token, as a share of the likeliest token's; 0: none.
    min_length: tokens of a response before which `stop_tokens` have no probability.
    stop_tokens: ids that end a response; read with `min_length` alone.
    bias: (token id, nats added to its logit before the temperature).
    greedy: keep the likeliest token alone, the first of ties.
  """

  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  min_length: int = 0
  stop_tokens: tuple[int, ...] = ()
  bias: tuple[tuple[int, float], ...] = ()
  greedy: bool = False

  @property
  def truncates(self) -> bool:
    """True if the kept set depends on the parameters: top-k, top-p, min-p or greedy."""
    return self != self.untruncated()

  @property
  def acts(self) -> bool:
    """True if anything but the temperature changes the logits."""
    return self._replace(stop_tokens=()) != LogitTransform()

  def untruncated(self) -> "LogitTransform":
    """The transform of a reference policy: bias and minimum length alone, so that no log-prob of a sample is -inf."""
    return self._replace(top_k=0, top_p=1.0, min_p=0.0, greedy=False)

  def __call__(
    self, logits: jax.Array, *, temperature: chex.Numeric, length: jax.Array, sampled: jax.Array | None = None
  ) -> jax.Array:
    """Logits of the policy.

    Args:
      logits: [..., V] of the decoder, -inf for tokens that are never drawn.
      temperature: divisor of the logits.
      length: [...] number of response tokens before this one.
      sampled: [...] ids that count as kept: tokens that this policy drew, which rounding would otherwise put outside the
        kept set where they lie on its edge. None: the kept set alone.

    Returns:
      [..., V], -inf outside the kept set; softmax gives the distribution.
    """
    vocab_size = logits.shape[-1]
    if self.bias:
      bias = np.zeros(vocab_size, np.float32)
      bias[[token for token, _ in self.bias]] = [value for _, value in self.bias]
      logits = logits + bias
    if self.min_length and self.stop_tokens:
      stops = np.isin(np.arange(vocab_size), self.stop_tokens)
      logits = jnp.where((length < self.min_length)[..., None] & stops, -jnp.inf, logits)
    logits = logits / temperature
    if not self.truncates:
      return logits
    kept = self.kept(jax.lax.stop_gradient(logits))
    if sampled is not None:
      kept |= jnp.arange(vocab_size) == sampled[..., None]
    return jnp.where(kept, logits, -jnp.inf)

  def kept(self, logits: jax.Array) -> jax.Array:
    """The kept set of logits [..., V] after the temperature: [..., V] bool."""
    if self.greedy:
      return jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1)[..., None]
    keys, kept = _ordered(logits), jnp.ones(logits.shape, bool)
    top = jnp.max(logits, axis=-1, keepdims=True)
    if self.top_k:
      kept = keys >= _threshold(keys, jnp.ones(logits.shape, jnp.int32), jnp.asarray(self.top_k))
    if self.top_p < 1:
      masses = jnp.where(kept, jnp.exp(logits - top), 0.0)
      kept &= keys >= _threshold(keys, masses, self.top_p * jnp.sum(masses, axis=-1))
    if self.min_p:
      kept &= logits >= top + math.log(self.min_p)
    return kept

  def __str__(self) -> str:
    parts = [f"{name.replace('_', '-')} {value:g}" for name, value, plain in (
      ("top_k", self.top_k, 0), ("top_p", self.top_p, 1), ("min_p", self.min_p, 0), ("min_length", self.min_length, 0),
    ) if value != plain]  # fmt: skip
    return ", ".join(["greedy"] * self.greedy + parts + [f"bias on {len(self.bias)} tokens"] * bool(self.bias))


PLAIN = LogitTransform()


def _ordered(x: jax.Array) -> jax.Array:
  """Integers in the order of float32 numbers; the two zeros are equal."""
  x = jnp.where(x == 0, 0.0, x.astype(jnp.float32))
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(2**31))


def _threshold(keys: jax.Array, weights: jax.Array, least: jax.Array) -> jax.Array:
  """Largest key [..., 1] whose own and larger keys [..., V] have weights that sum to `least` [...] or more.

  It is found bit by bit. Each of the 32 sums is one pass over the vocabulary, which costs less than sorting it and needs
  no exchange between devices but of the sums.
  """

  def bit(index, key):
    raised = key | (jnp.uint32(2**31) >> index.astype(jnp.uint32))
    mass = jnp.sum(jnp.where(keys >= raised, weights, 0), axis=-1, keepdims=True)
    return jnp.where(mass >= jnp.expand_dims(least, -1), raised, key)

  return jax.lax.fori_loop(0, 32, bit, jnp.zeros((*keys.shape[:-1], 1), jnp.uint32))
