"""Groups of samples from a decoder: one prefill a prompt, then one compiled decoding loop."""

import functools

from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax import token_stats
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.types import PromptBatch
from qempo_jax.types import Rollout


@struct.dataclass
class _State:
  """What the decoding loop carries: the samples so far, and the logits of the token to come."""

  step: jax.Array
  logits: jax.Array  # [P, G, V], divided by the temperature
  done: jax.Array  # [P, G]
  cache: KVCache
  rollout: Rollout


@functools.partial(
    jax.jit, static_argnames=("config", "group_size", "max_length", "stop_tokens")
)
def sample_groups(
    params,
    config: ModelConfig,
    prompts: PromptBatch,
    rng,
    *,
    group_size: int,
    max_length: int,
    temperature: float,
    stop_tokens: tuple[int, ...],
) -> Rollout:
  """Samples a group of responses to each prompt from the untruncated distribution.

  The random number of a token depends on (rng, prompt's row, sample, step) alone. A sample ends with
  the first stop token, which belongs to it; its log-probability and entropy count.

  Args:
    params: the decoder's parameters.
    config: the decoder's shape.
    prompts: padded on either side, or not at all.
    rng: a key.
    group_size: samples a prompt, G.
    max_length: most response tokens, T; part of the problem's statement, for entropy grows with length.
    temperature: divides the logits.
    stop_tokens: ids that end a response.

  Returns:
    Rollout with log-probabilities and entropies at this temperature, in nats.
  """
  params, unembedding = transformer.rounded(params, config)
  hidden_PxD, keys, values = transformer.prefill(params, config, prompts.tokens, prompts.mask)
  head = lambda h: transformer.logits(h, unembedding, config) / temperature
  first_PxV = head(hidden_PxD)
  shape = (prompts.tokens.shape[0], group_size)
  cache = KVCache.create(
      keys, values, prompts.mask, group_size=group_size, max_length=max_length
  )
  sample_keys = _sample_keys(rng, *shape)

  def sample_one(state: _State) -> _State:
    """Draws a token for every sample, stores it, and computes the next logits."""
    uniform = jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, state.step))))
    token = categorical(uniform(sample_keys), state.logits)
    stats = token_stats.from_logits(state.logits, token)
    alive, stops = ~state.done, _is_stop(token, stop_tokens)
    put = lambda array, value: array.at[:, :, state.step].set(jnp.where(alive, value, 0).astype(array.dtype))
    old = state.rollout
    rollout = Rollout(
        tokens=put(old.tokens, token),
        mask=put(old.mask, alive),
        log_probs=put(old.log_probs, stats.log_prob),
        entropies=put(old.entropies, stats.entropy),
        truncated=~(state.done | stops),
    )
    hidden, cache = transformer.decode(params, config, token, state.cache)
    return _State(state.step + 1, head(hidden), state.done | stops, cache, rollout)

  empty = lambda dtype: jnp.zeros((*shape, max_length), dtype)
  start = _State(
      step=jnp.zeros((), jnp.int32),
      logits=jnp.broadcast_to(first_PxV[:, None], (*shape, first_PxV.shape[-1])),
      done=jnp.zeros(shape, bool),
      cache=cache,
      rollout=Rollout(
          empty(jnp.int32), empty(bool), empty(jnp.float32), empty(jnp.float32), jnp.ones(shape, bool)
      ),
  )
  running = lambda state: (state.step < max_length) & ~jnp.all(state.done)
  return jax.lax.while_loop(running, sample_one, start).rollout


def categorical(uniform, logits, *, block=256):
  """Draws from softmax(logits) by inverting its cumulative sum, first over blocks, then within one.

  One random number and one pass over the vocabulary a draw, where the Gumbel trick needs a random number
  for every token of the vocabulary.

  Args:
    uniform: [...] in [0, 1).
    logits: [..., V].
    block: tokens a block.

  Returns:
    [...] token ids.
  """
  probs = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  padding = [(0, 0)] * uniform.ndim + [(0, -logits.shape[-1] % block)]
  blocks = jnp.pad(probs, padding).reshape(*uniform.shape, -1, block)
  mass = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
  point = uniform[..., None] * mass[..., -1:]
  chosen = jnp.argmax(mass > point, axis=-1)[..., None]
  before = jnp.where(chosen > 0, jnp.take_along_axis(mass, jnp.maximum(chosen - 1, 0), axis=-1), 0)
  inside = jnp.cumsum(jnp.take_along_axis(blocks, chosen[..., None], axis=-2)[..., 0, :], axis=-1)
  # Rounding can leave the point at the very end of its block: keep it below the block's own mass.
  point = jnp.minimum(point - before, inside[..., -1:] * (1 - 1e-6))
  return chosen[..., 0] * block + jnp.argmax(inside > point, axis=-1)


def _sample_keys(rng, prompts, group_size):
  fold = lambda p, g: jax.random.fold_in(jax.random.fold_in(rng, p), g)
  over_group = jax.vmap(fold, in_axes=(None, 0))
  return jax.vmap(over_group, in_axes=(0, None))(jnp.arange(prompts), jnp.arange(group_size))


def _is_stop(token, stop_tokens):
  return jnp.isin(token, jnp.asarray(stop_tokens, token.dtype))
