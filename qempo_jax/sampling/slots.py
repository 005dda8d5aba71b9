"""Slots in which samples are decoded, and the queue of samples that they take from, all on the device.

Samples are numbered prompt by prompt: item i is sample i mod G of prompt i // G. Shape letters: P prompts, G samples of
each, R rows of S slots, T most tokens.
"""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.models.kv_cache import DeltaCache
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.models.kv_cache import LayerCache


@struct.dataclass
class Slots:
  """Carry of the decoding loops.

  Attributes:
    hidden: [R, S, D] final hidden state that predicts each slot's next token.
    item: [R, S] current or last sample of each slot.
    busy: [R, S] True if the slot's sample is unfinished.
    next: first sample of the queue.
    cache: keys and values.
    tokens: [P G, T] tokens of every sample, -1 on padding.
    log_probs: [P G, T] nats.
    entropies: [P G, T] nats.
    slot_steps: tokens that the slots could have drawn so far.
    more: True if any device has an unfinished sample.
    most_left: largest number of unfinished samples on a device.
  """

  hidden: jax.Array
  item: jax.Array
  busy: jax.Array
  next: jax.Array
  cache: KVCache
  tokens: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  slot_steps: jax.Array
  more: jax.Array
  most_left: jax.Array

  def keep(self, token, stats):
    """Stores the tokens of busy slots, with their TokenStats, in their samples."""
    where = (jnp.where(self.busy, self.item, len(self.tokens)), self.cache.lengths_RxG)
    put = lambda array, value: array.at[where].set(value.astype(array.dtype), mode="drop")
    return dataclasses.replace(
      self,
      tokens=put(self.tokens, token),
      log_probs=put(self.log_probs, stats.log_prob),
      entropies=put(self.entropies, stats.entropy),
      slot_steps=self.slot_steps + self.busy.size,
    )

  def counted(self):
    """The slots with updated `more` and `most_left`, which the loops' conditions read."""
    left = jnp.sum(self.busy) + len(self.tokens) - self.next
    most = sharding.most_over_rows(left)
    return dataclasses.replace(self, more=most > 0, most_left=most)

  def halved(self, size: int):
    """The busy slots, in an array of `size` of them, each in a row of its own."""
    order = jnp.argsort(~self.busy.reshape(-1), stable=True)[:size]
    pick = lambda array: array.reshape(-1, 1, *array.shape[2:])[order]
    hidden, item, busy = pick(self.hidden), pick(self.item), pick(self.busy)
    return dataclasses.replace(self, hidden=hidden, item=item, busy=busy, cache=self.cache.pick(order))


class Work:
  """Prefilled prompts and the number of samples of each."""

  def __init__(self, hidden_PxD, prompt_layers: tuple[LayerCache | DeltaCache, ...], mask_PxL, *, group_size: int):
    """Takes each prompt's last hidden state, its caches (with empty rings), and its mask."""
    self._hidden_PxD, self._layers, self._mask_PxL, self._group_size = hidden_PxD, prompt_layers, mask_PxL, group_size
    self._items = hidden_PxD.shape[0] * group_size
    self._refills = False

  def start(self, slots: int, ring: int, max_length: int) -> Slots:
    """Slots with the first samples, one row per prompt; with fewer slots than samples, one row per slot."""
    self._refills = 0 < slots < self._items
    item = jnp.arange(slots)[:, None] if self._refills else jnp.arange(self._items).reshape(-1, self._group_size)
    prompt_R = item[:, 0] // self._group_size

    def layer_of(layer):
      prompt = jax.tree.map(lambda x: x[prompt_R] if self._refills else x, layer.prompt)
      return layer.create(prompt, group_size=item.shape[1], ring=ring)

    cache = KVCache(
      tuple(map(layer_of, self._layers)),
      self._mask_PxL[prompt_R],
      jnp.zeros(item.shape, jnp.int32),
      jnp.zeros((), jnp.int32),
      ring,
    )
    empty = jnp.zeros((self._items, max_length), jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    busy, tokens = jnp.ones(item.shape, bool), jnp.full(empty.shape, -1)
    hidden = self._hidden_PxD[item // self._group_size]
    state = Slots(hidden, item, busy, zero + item.size, cache, tokens, empty, empty, zero, zero > 0, zero)
    return state.counted()

  def refill(self, state: Slots) -> Slots:
    """Gives every free slot the next sample of the queue."""
    if not self._refills:
      return state
    item = state.next + jnp.cumsum(~state.busy).reshape(state.busy.shape) - 1
    refilled = ~state.busy & (item < self._items)
    item = jnp.where(refilled, item, state.item)
    prompt = item // self._group_size
    has_new_prompt = refilled & (prompt != state.item // self._group_size)
    cache = dataclasses.replace(
      state.cache,
      layers=self._with_new_prompts(state.cache.layers, prompt[:, 0], has_new_prompt[:, 0]),
      prompt_mask_RxL=self._mask_PxL[prompt[:, 0]],
      lengths_RxG=jnp.where(refilled, 0, state.cache.lengths_RxG),
    )
    hidden = jnp.where(refilled[..., None], self._hidden_PxD[prompt], state.hidden)
    num_taken = jnp.sum(refilled, dtype=jnp.int32)
    return state.replace(hidden=hidden, item=item, busy=state.busy | refilled, next=state.next + num_taken, cache=cache)

  def _with_new_prompts(self, layers, prompt_R, has_new_prompt_R):
    """Copies keys and values of new prompts into their rows, one after another; mostly there are none."""
    order = jnp.argsort(~has_new_prompt_R, stable=True)

    def copy(index, layers):
      row = order[index]
      put = lambda rows, prompts: jax.lax.dynamic_update_index_in_dim(
        rows, jax.lax.dynamic_index_in_dim(prompts, prompt_R[row], keepdims=False), row, 0
      )
      return tuple(
        dataclasses.replace(layer, prompt=jax.tree.map(put, layer.prompt, prompts.prompt))
        for layer, prompts in zip(layers, self._layers)
      )

    return jax.lax.fori_loop(0, jnp.sum(has_new_prompt_R), copy, layers)
