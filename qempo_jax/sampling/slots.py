"""Slots that samples are decoded in, and the queue of samples that they take from, all on the device.

Samples are numbered prompt by prompt: item i is sample i mod G of prompt i // G. Shape letters: P prompts, G samples of
each, R rows of S slots, T most tokens.
"""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.models.kv_cache import LayerCache


@struct.dataclass
class Slots:
  """What the decoding loops carry.

  Attributes:
    hidden: [R, S, D] final hidden state that each slot's next token depends on.
    item: [R, S] the sample that each slot is at, or was.
    busy: [R, S] whether it is at one.
    next: the first sample that no slot has taken.
    cache: keys and values.
    tokens: [P G, T] of every sample, -1 where there is none.
    log_probs: [P G, T] nats.
    entropies: likewise.
    slot_steps: tokens that the slots could have drawn so far.
    more: whether any device has a sample at work.
    most_left: the most samples that are at work or waiting on a device.
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
    """Writes the tokens of busy slots, with their TokenStats, to their samples."""
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
    """The same with what the loops' conditions ask for."""
    left = jnp.sum(self.busy) + len(self.tokens) - self.next
    most = sharding.most_over_rows(left)
    return dataclasses.replace(self, more=most > 0, most_left=most)

  def halved(self, size: int):
    """The slots at work, in an array of `size` of them, each in a row of its own."""
    order = jnp.argsort(~self.busy.reshape(-1), stable=True)[:size]
    pick = lambda array: array.reshape(-1, 1, *array.shape[2:])[order]
    hidden, item, busy = pick(self.hidden), pick(self.item), pick(self.busy)
    return dataclasses.replace(self, hidden=hidden, item=item, busy=busy, cache=self.cache.pick(order))


class Work:
  """Prefilled prompts and how many samples each wants."""

  def __init__(self, hidden_PxD, prompt_layers: tuple[LayerCache, ...], mask_PxL, *, group_size: int):
    """Takes each prompt's last hidden state, its keys and values (of rings without places), and its mask."""
    self._hidden_PxD, self._layers, self._mask_PxL, self._group_size = hidden_PxD, prompt_layers, mask_PxL, group_size
    self._items = hidden_PxD.shape[0] * group_size
    self._refills = False

  def start(self, slots: int, ring: int, max_length: int) -> Slots:
    """Slots with the first samples: a row for each prompt's group, or, where slots are fewer than samples, for each slot."""
    self._refills = 0 < slots < self._items
    item = jnp.arange(slots)[:, None] if self._refills else jnp.arange(self._items).reshape(-1, self._group_size)
    prompt_R = item[:, 0] // self._group_size

    def layer_of(layer):
      prompt = jax.tree.map(lambda x: x[prompt_R] if self._refills else x, (layer.prompt_keys, layer.prompt_values))
      return LayerCache.create(*prompt, group_size=item.shape[1], ring=ring)

    cache = KVCache(
      tuple(map(layer_of, self._layers)),
      self._mask_PxL[prompt_R],
      jnp.zeros(item.shape, jnp.int32),
      jnp.zeros((), jnp.int32),
    )
    empty = jnp.zeros((self._items, max_length), jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    busy, tokens = jnp.ones(item.shape, bool), jnp.full(empty.shape, -1)
    hidden = self._hidden_PxD[item // self._group_size]
    state = Slots(hidden, item, busy, zero + item.size, cache, tokens, empty, empty, zero, zero > 0, zero)
    return state.counted()

  def refill(self, state: Slots) -> Slots:
    """Gives every free slot the next sample, while there are any."""
    if not self._refills:
      return state
    item = state.next + jnp.cumsum(~state.busy).reshape(state.busy.shape) - 1
    takes = ~state.busy & (item < self._items)
    item = jnp.where(takes, item, state.item)
    prompt = item // self._group_size
    moves = takes & (prompt != state.item // self._group_size)
    first = lambda old, new: jnp.where(takes, new, old)
    cache = dataclasses.replace(
      state.cache,
      layers=self._moved(state.cache.layers, prompt[:, 0], moves[:, 0]),
      prompt_mask_RxL=self._mask_PxL[prompt[:, 0]],
      lengths_RxG=first(state.cache.lengths_RxG, 0),
    )
    hidden = jnp.where(takes[..., None], self._hidden_PxD[prompt], state.hidden)
    return state.replace(
      hidden=hidden, item=item, busy=state.busy | takes, next=state.next + jnp.sum(takes, dtype=jnp.int32), cache=cache
    )

  def _moved(self, layers, prompt_R, moves_R):
    """The rows that move to another prompt with a copy of its keys and values, one after another: mostly there are none."""
    order = jnp.argsort(~moves_R, stable=True)

    def copy(index, layers):
      row = order[index]
      put = lambda old, all_: jax.lax.dynamic_update_index_in_dim(
        old, jax.lax.dynamic_index_in_dim(all_, prompt_R[row], keepdims=False), row, 0
      )
      return tuple(
        dataclasses.replace(
          layer,
          prompt_keys=jax.tree.map(put, layer.prompt_keys, of.prompt_keys),
          prompt_values=jax.tree.map(put, layer.prompt_values, of.prompt_values),
        )
        for layer, of in zip(layers, self._layers)
      )

    return jax.lax.fori_loop(0, jnp.sum(moves_R), copy, layers)
