"""Samples groups of responses: one prefill a prompt, then decoding loops on the device without waits for the host.

Every sample has a slot. With as many slots as samples, the slots of a prompt share its keys and values. With fewer, a
slot that finishes a sample takes the next one of a queue on the device, with a copy of its prompt. Long responses then
keep no other slot waiting (Orca, Yu et al., OSDI 2022). While the last samples finish, the slots may be halved a few
times: the busy ones move into an array of half the size.

The work is a chain of compiled loops over arrays of static shapes. First the rings of keys and values double until they
hold the longest response, then the slots halve. On a mesh each device has the queue and the slots of its own prompts,
and all take equally many turns. The random numbers of a token depend on (rng, prompt, sample, token) alone. Slots,
halvings, rings and the batching of prompts therefore change speed and memory, but no sample.
"""

import functools

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.models import decoding
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.sampling import draws
from qempo_jax.sampling import slots as queues
from qempo_jax.token_stats import TokenStats
from qempo_jax.types import PromptBatch
from qempo_jax.types import Rollout

_STATIC = ("config", "group_size", "max_length", "stop_tokens", "slots", "halvings", "first_ring", "transform")


@functools.partial(jax.jit, static_argnames=_STATIC)
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
  prompt_ids=None,
  slots: int = 0,
  halvings: int = 0,
  first_ring: int | None = None,
  transform: LogitTransform = PLAIN,
) -> Rollout:
  """Samples a group of responses to each prompt.

  A sample ends with its first stop token, which is part of it: its log-prob and entropy count.

  Args:
    params: the decoder's parameters.
    config: the decoder's config.
    prompts: padded on either side, or not at all.
    rng: a key.
    group_size: G, samples a prompt.
    max_length: T, most response tokens; part of the problem statement, since entropy grows with length.
    temperature: divisor of the logits.
    stop_tokens: ids that end a response.
    prompt_ids: [P] numbers that the prompts' random numbers depend on; None: their row indices.
    slots: sequences decoded in parallel, over all devices; 0, or a number above the samples': all.
    halvings: times the slots are halved while the last samples finish; each compiles one more loop.
    first_ring: response tokens in the first loop's ring; None: half of `max_length`, within 32 and 256. Attention reads
      a whole ring for each token, and every doubling compiles one more loop.
    transform: bias, minimum length and truncation of the distribution; the default draws from all of it.

  Returns:
    Rollout with log-probs and entropies of the transformed distribution at this temperature, in nats.
  """
  rows = prompts.tokens.shape[0]
  hidden_PxD, stored = decoding.prefill(params, config, prompts.tokens, prompts.mask)
  prompt_ids = jnp.arange(rows) if prompt_ids is None else prompt_ids
  kv_dtype = None if config.kv_cache == "auto" else config.kv_cache
  store = KVCache.create(stored, prompts.mask, config, group_size=1, max_length=0, dtype=kv_dtype)
  sample_keys = _sample_keys(rng, prompt_ids, group_size)
  per_device = -(-slots // sharding.row_shards()) if rows % sharding.row_shards() == 0 else slots
  run = functools.partial(
    _run,
    config=config,
    max_length=max_length,
    stop_tokens=stop_tokens,
    slots=per_device,
    halvings=halvings,
    ring=first_ring,
    transform=transform,
  )
  length = prompts.tokens.shape[1] + max_length
  decoder = (decoding.for_decoding(params, config, length), jnp.asarray(temperature, jnp.float32))
  by_prompt = (hidden_PxD, store.layers, store.prompt_mask_RxL, sample_keys)
  tokens, stats, slot_steps = sharding.each_for_its_rows(run, decoder, by_prompt)
  mask = tokens >= 0
  kept = lambda array: jnp.where(mask, array, 0)
  truncated = ~jnp.any(mask & _is_stop(tokens, stop_tokens), axis=-1)
  return Rollout(kept(tokens), mask, kept(stats.log_prob), kept(stats.entropy), truncated, jnp.sum(slot_steps))


def ring_sizes(max_length: int, first: int | None = None) -> list[int]:
  """Ring size of every loop: the first, then doubled until the longest response fits."""
  sizes = [min(min(max(-(-max_length // 2), 32), 256) if first is None else first, max_length)]
  while sizes[-1] < max_length:
    sizes.append(min(2 * sizes[-1], max_length))
  return sizes


def _run(decoder, by_prompt, *, config, max_length, stop_tokens, slots, halvings, ring, transform):
  """All loops on one device's prompts: (tokens [P, G, T], -1 on padding; TokenStats; slot-steps [1])."""
  params, temperature = decoder
  hidden_PxD, prompt_layers, mask_PxL, keys_PxG = by_prompt
  rings = ring_sizes(max_length, ring)
  work = queues.Work(hidden_PxD, prompt_layers, mask_PxL, group_size=keys_PxG.shape[1])
  state = work.start(slots, rings[0], max_length)
  flat_keys = keys_PxG.reshape(-1)

  def turn(state: queues.Slots) -> queues.Slots:
    """Draws a token in every slot, stores those of busy slots, and computes the next hidden states."""
    lengths = state.cache.lengths_RxG
    logits = transformer.logits(state.hidden, params["unembedding"], config)
    logits = transform(logits, temperature=temperature, length=lengths)
    fold = lambda item, time: jax.random.bits(jax.random.fold_in(flat_keys[item], time), (2,), jnp.uint32)
    token, stats = draws.draw(jax.vmap(jax.vmap(fold))(state.item, lengths), logits)
    state = state.keep(token, stats)
    ends = _is_stop(token, stop_tokens) | (lengths + 1 >= max_length)
    hidden, cache = decoding.decode(params, config, token, state.cache)
    state = state.replace(hidden=hidden, cache=cache, busy=state.busy & ~ends)
    return work.refill(state).counted()

  for index, size in enumerate(rings):
    state = state.replace(cache=state.cache.grown(size))
    last = index == len(rings) - 1
    while last and halvings and state.busy.size > 1:
      half, halvings = -(-state.busy.size // 2), halvings - 1
      state = jax.lax.while_loop(lambda s, half=half: s.more & (s.most_left > half), turn, state)
      state = state.halved(half)
    running = lambda s, size=size, last=last: s.more & (last | (s.cache.clock < size))
    state = jax.lax.while_loop(running, turn, state)
  shape = (*keys_PxG.shape, max_length)
  stats = TokenStats(state.log_probs.reshape(shape), state.entropies.reshape(shape))
  return state.tokens.reshape(shape), stats, state.slot_steps[None]


def _sample_keys(rng, prompt_ids, group_size):
  fold = lambda p, g: jax.random.fold_in(jax.random.fold_in(rng, p), g)
  over_group = jax.vmap(fold, in_axes=(None, 0))
  return jax.vmap(over_group, in_axes=(0, None))(prompt_ids, jnp.arange(group_size))


def _is_stop(token, stop_tokens):
  return jnp.isin(token, jnp.asarray(stop_tokens, token.dtype))
