"""Autoregressive policies small enough to enumerate: every expectation is a sum, every gradient exact.

    policy = EnumerablePolicy.table(vocab_size=3, max_length=4)     # 31 sequences
    params = policy.init(jax.random.key(0))
    policy.entropy(params), jax.grad(policy.entropy)(params)

Any model fits as `EnumerablePolicy(space, init, token_log_probs)` with `token_log_probs(params) -> [N, T]`, the
log-probs of the N enumerated sequences' own tokens. Next-token distributions, entropies and KLs follow from the
enumeration.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import masked
from qempo_jax.testing.sequence_space import SequenceSpace
from qempo_jax.testing.sequence_space import sequence_space

Params = Any


class EnumerablePolicy(NamedTuple):
  """A policy over all sequences of a `SequenceSpace`; the methods are pure functions of its params.

  Attributes:
    space: the N sequences, of at most T tokens.
    init: key -> params.
    token_log_probs: params -> [N, T] log-probs of the sequences' own tokens, nats; padding is ignored.
  """

  space: SequenceSpace
  init: Callable[[Array], Params]
  token_log_probs: Callable[[Params], Array]

  @classmethod
  def table(cls, vocab_size: int, max_length: int) -> "EnumerablePolicy":
    """Free logits for every prefix: params [prefixes, vocab_size]; it can represent any distribution."""
    space = sequence_space(vocab_size, max_length)

    def init(key: Array) -> Array:
      return jax.random.normal(key, (space.num_prefixes, vocab_size))

    def token_log_probs(logits: Array) -> Array:
      return space.gather_tokens(jax.nn.log_softmax(logits))

    return cls(space, init, token_log_probs)

  @classmethod
  def mlp(cls, vocab_size: int, max_length: int, width: int) -> "EnumerablePolicy":
    """One hidden layer over the one-hot prefix: prefixes share parameters, as in a language model."""
    space = sequence_space(vocab_size, max_length)
    features = space.prefix_features()

    def init(key: Array) -> dict[str, Array]:
      k1, k2 = jax.random.split(key)
      return {
        "hidden": jax.random.normal(k1, (features.shape[1], width)),
        "logits": jax.random.normal(k2, (width, vocab_size)),
      }

    def token_log_probs(params: dict[str, Array]) -> Array:
      logits = jnp.tanh(features @ params["hidden"]) @ params["logits"]
      return space.gather_tokens(jax.nn.log_softmax(logits))

    return cls(space, init, token_log_probs)

  @classmethod
  def transformer(
    cls,
    vocab_size: int,
    max_length: int,
    *,
    prompt: tuple[int, ...] = (0,),
    width: int = 16,
    num_layers: int = 2,
    init_stddev: float = 0.3,
  ) -> "EnumerablePolicy":
    """The library's own decoder, tiny, answering one prompt; see `tiny_transformer`.

    Policies that differ only in their prompt share their params: one model, several prompts.
    """
    from qempo_jax.testing import tiny_transformer  # Keeps the models out of `import qempo_jax`.

    space = sequence_space(vocab_size, max_length)
    config = tiny_transformer.tiny_config(vocab_size, width=width, num_layers=num_layers)
    return cls(space, *tiny_transformer.functions(space, prompt, config, init_stddev=init_stddev))

  def log_probs(self, params: Params) -> Array:
    """[N] log-probs of the sequences, nats; their exponentials sum to one."""
    return jnp.sum(masked(self.token_log_probs(params), self.space.mask), axis=-1)

  def next_token_log_probs(self, params: Params) -> Array:
    """[N, T, V] log-probs of every next token along every sequence; -inf if no sequence continues with it."""
    return self.space.next_tokens(self.token_log_probs(params))

  def token_entropies(self, params: Params) -> Array:
    """[N, T] entropies of the next-token distributions, nats; zero on padding."""
    log_p = self.next_token_log_probs(params)
    return -jnp.sum(jnp.exp(log_p) * _finite(log_p), axis=-1)

  def token_kls(self, params: Params, ref_token_log_probs: Array) -> Array:
    """[N, T] KL of the next-token distributions from those of a reference's [N, T] token log-probs, nats."""
    log_p, log_q = self.next_token_log_probs(params), self.space.next_tokens(ref_token_log_probs)
    return jnp.sum(jnp.exp(log_p) * (_finite(log_p) - _finite(log_q)), axis=-1)

  def expected(self, params: Params, values: Array) -> Array:
    """E_pi of [N] or [N, ...] values."""
    return jnp.tensordot(jnp.exp(self.log_probs(params)), values, axes=1)

  def entropy(self, params: Params) -> Array:
    """H(pi) of whole sequences, nats."""
    log_p = self.log_probs(params)
    return -jnp.sum(jnp.exp(log_p) * _finite(log_p))

  def kl(self, params: Params, ref_log_probs: Array) -> Array:
    """KL(pi || q) of whole sequences, nats, from the [N] log-probs of q."""
    log_p = self.log_probs(params)
    return jnp.sum(jnp.exp(log_p) * (_finite(log_p) - ref_log_probs))

  def objective(
    self,
    params: Params,
    rewards: Array,
    ref_log_probs: Array,
    *,
    alpha: float | Array,
    beta: float | Array,
  ) -> Array:
    """J(pi) = E[r] + alpha H(pi) + beta E[log q], from [N] rewards and [N] log-probs of q."""
    chex.assert_equal_shape([rewards, ref_log_probs])
    return self.expected(params, rewards + beta * ref_log_probs) + alpha * self.entropy(params)

  def gradient(
    self,
    params: Params,
    rewards: Array,
    ref_log_probs: Array,
    *,
    alpha: float | Array,
    beta: float | Array,
  ) -> Params:
    """Exact gradient of `objective`, a pytree like params."""
    return jax.grad(self.objective)(params, rewards, ref_log_probs, alpha=alpha, beta=beta)

  def length_distribution(self, params: Params) -> Array:
    """[T] probability of a length of 1, ..., T tokens, EOS included; truncated sequences have length T."""
    return self.expected(params, jax.nn.one_hot(self.space.lengths - 1, self.space.max_length))

  def truncation_rate(self, params: Params) -> Array:
    """Probability of reaching the length limit without EOS."""
    return self.expected(params, self.space.truncated.astype(jnp.result_type(float)))


def _finite(log_p: Array) -> Array:
  """log p where finite and zero elsewhere, so that 0 log 0 = 0 in value and gradient."""
  return jnp.where(jnp.isfinite(log_p), log_p, 0.0)
