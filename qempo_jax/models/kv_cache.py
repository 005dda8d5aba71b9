"""Key and value cache of samples that may share their prompts.

Slots are arranged in rows. Those of a row share a prompt, whose part is stored once a row; each slot has its own
response part. That part is a ring buffer on a common clock: at time c every slot writes entry c mod T, and attends to
the entries that are younger than its own response. A slot starts its next response by resetting its length. Slots need
not be at the same token, and no write needs an index of its own. Keys are rotated before they are stored, so their
order in the ring has no meaning.

Every array has the layout of the product that reads it, keys with their entries last, and every decoder block its own
arrays: only new entries are copied.

Shape letters: R rows, G slots of a row, L prompt length, T entries of the ring, J key/value heads, K head width.
"""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.models import delta_net
from qempo_jax.models import layers
from qempo_jax.models.positions import within_window
from qempo_jax.token_stats import softcap


@struct.dataclass
class Stored:
  """Keys or values in the cache's dtype; int8 numbers are multiples of a scale per token and head.

  Attributes:
    numbers: keys [..., K, entries], values [..., entries, K].
    scales: [..., entries] float32, or None.
  """

  numbers: jax.Array
  scales: jax.Array | None

  @classmethod
  def pack(cls, x, dtype):
    """Rounds [..., K] to the dtype: for int8 to 127 steps of the largest number of each token and head."""
    if jnp.dtype(dtype) != jnp.int8:
      return cls(x.astype(dtype), None)
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), jnp.finfo(jnp.float32).tiny).astype(jnp.float32) / 127
    return cls(jnp.round(x / scales[..., None]).astype(jnp.int8), scales)

  def scores(self, spec, q):
    """Products of queries with these keys, spec "...k,...k->...", summed in float32."""
    products = jnp.einsum(spec, q, self.numbers.astype(q.dtype), preferred_element_type=jnp.float32)
    return products if self.scales is None else products * _expand_scales(self.scales, products)

  def mix(self, spec, weights):
    """Weighted sums of the values, weights [..., queries, keys], by an einsum spec."""
    weights = weights if self.scales is None else weights * _expand_scales(self.scales, weights)
    return jnp.einsum(spec, weights, self.numbers.astype(weights.dtype))


@struct.dataclass
class LayerCache:
  """Cache of one decoder block.

  Attributes:
    prompt: keys [R, J, K, L] and values [R, J, L, K].
    keys: [R, J, G, K, T].
    values: [R, J, G, T, K].
  """

  prompt: tuple[Stored, Stored]
  keys: Stored
  values: Stored

  @classmethod
  def create(cls, prompt: tuple[Stored, Stored], *, group_size: int, ring: int):
    """Empty rings for each slot of rows with these prompts."""
    keys, values = prompt
    return cls(prompt, _rings(keys, -1, group_size, ring), _rings(values, 2, group_size, ring))

  def stored(self, k_RxGxJxK, v_RxGxJxK, entry):
    """The cache with a token's rotated keys and its values in a ring entry."""
    put = lambda stored, new, axis: jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_index_in_dim(old, jnp.swapaxes(new, 1, 2), entry, axis % old.ndim),
      stored,
      Stored.pack(new, stored.numbers.dtype),
    )
    keys, values = put(self.keys, k_RxGxJxK, _KEY_ENTRIES), put(self.values, v_RxGxJxK, _VALUE_ENTRIES)
    return dataclasses.replace(self, keys=keys, values=values)

  def attend(self, q_RxGxHxK, prompt_mask_RxGxL, ring_mask_RxGxT, config, sinks_H=None):
    """Attention to the prompt and to the slot's own past.

    Args:
      q_RxGxHxK: rotated queries.
      prompt_mask_RxGxL: True on prompt tokens that a query attends to.
      ring_mask_RxGxT: True on ring entries that a query attends to, this token's included.
      config: the decoder's config: scale and soft-cap of the scores.
      sinks_H: the heads' sinks, or None.

    Returns:
      [R, G, H, K].
    """
    (prompt_keys, prompt_values), key_heads = self.prompt, self.keys.numbers.shape[1]
    q_RxJxGxrxK = jnp.swapaxes(layers.group_heads(q_RxGxHxK, key_heads) * config.attention_scale, 1, 2)
    lowest = jnp.finfo(jnp.float32).min
    masked = lambda scores, mask: jnp.where(mask[:, None, :, None], softcap(scores, config.attention_softcap), lowest)
    to_prompt = masked(prompt_keys.scores("xjgrk,xjkl->xjgrl", q_RxJxGxrxK), prompt_mask_RxGxL)
    to_own = masked(self.keys.scores("xjgrk,xjgkt->xjgrt", q_RxJxGxrxK), ring_mask_RxGxT)
    highest = lambda scores: jnp.max(scores, axis=-1, keepdims=True)
    top = jnp.maximum(highest(to_prompt), highest(to_own))
    if sinks_H is not None:
      sinks = at_least_float32(sinks_H).reshape(key_heads, 1, -1, 1)
      top = jnp.maximum(top, sinks)
    on_prompt, on_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
    total = jnp.sum(on_prompt, axis=-1, keepdims=True) + jnp.sum(on_own, axis=-1, keepdims=True)
    total = total if sinks_H is None else total + jnp.exp(sinks - top)
    mixed = prompt_values.mix("xjgrl,xjlk->xjgrk", on_prompt) + self.values.mix("xjgrt,xjgtk->xjgrk", on_own)
    return jnp.swapaxes(mixed / total, 1, 2).reshape(q_RxGxHxK.shape).astype(q_RxGxHxK.dtype)

  def grown(self, ring: int):
    """The cache with longer rings."""
    pad = lambda x, axis: jnp.pad(
      x, [(0, ring - x.shape[axis]) if i == axis % x.ndim else (0, 0) for i in range(x.ndim)]
    )
    extend = lambda stored, axis: jax.tree.map(lambda x: pad(x, axis), stored)
    return dataclasses.replace(self, keys=extend(self.keys, _KEY_ENTRIES), values=extend(self.values, _VALUE_ENTRIES))

  def pick(self, slots, rows):
    """The given slots, of all [R * G], each in a row of its own with the prompt of its row."""
    of_rows = lambda x: x[rows]
    of_slots = lambda x: jnp.swapaxes(x, 1, 2).reshape(-1, 1, *x.shape[1:2], *x.shape[3:])[slots].swapaxes(1, 2)
    prompt, keys, values = jax.tree.map(of_rows, self.prompt), *jax.tree.map(of_slots, (self.keys, self.values))
    return LayerCache(prompt, keys, values)


@struct.dataclass
class DeltaCache:
  """Cache of one block with a gated delta net, see `delta_net`.

  Attributes:
    prompt: the last inputs of the convolution in each prompt [R, U, C], and the state after it [R, H, K, V].
    inputs: [R, G, U, C] the last inputs of each slot.
    state: [R, G, H, K, V] state of each slot.
  """

  prompt: tuple[jax.Array, jax.Array]
  inputs: jax.Array
  state: jax.Array

  @classmethod
  def create(cls, prompt: tuple[jax.Array, jax.Array], *, group_size: int, ring: int):
    """Slots that start after these prompts; a state needs no ring."""
    del ring
    inputs, state = (jnp.broadcast_to(x[:, None], (x.shape[0], group_size, *x.shape[1:])) for x in prompt)
    return cls(prompt, inputs, state)

  def step(self, inputs: delta_net.Inputs, starts_RxG):
    """One token of every slot, those that start after their prompt: ([R, G, H, V], the cache with the token)."""

    def start(own, prompt):
      starts = starts_RxG.reshape(*starts_RxG.shape, *(1,) * (own.ndim - 2))
      return jnp.where(starts, prompt[:, None], own)

    out, *after = delta_net.next_token(inputs, *map(start, (self.inputs, self.state), self.prompt))
    return out, DeltaCache(self.prompt, *after)

  def grown(self, ring: int):
    """The same cache."""
    del ring
    return self

  def pick(self, slots, rows):
    """The given slots, of all [R * G], each in a row of its own with the prompt of its row."""
    of_slots = lambda x: x.reshape(-1, 1, *x.shape[2:])[slots]
    inputs, state = self.prompt
    return DeltaCache((inputs[rows], state[rows]), of_slots(self.inputs), of_slots(self.state))


@struct.dataclass
class KVCache:
  """Cache of all slots and blocks.

  Attributes:
    layers: cache of every block with its own keys and values, or its own state.
    prompt_mask_RxL: True on prompt tokens.
    lengths_RxG: stored response tokens of each slot.
    clock: tokens stored since the start, a scalar.
    ring: entries of every slot's ring, T.
  """

  layers: tuple[LayerCache | DeltaCache, ...]
  prompt_mask_RxL: jax.Array
  lengths_RxG: jax.Array
  clock: jax.Array
  ring: int = struct.field(pytree_node=False)

  @classmethod
  def create(cls, prompts, prompt_mask_RxL, config, *, group_size, max_length, dtype=None):
    """Empty rings of `max_length` entries for prompts of `decoding.prefill`; dtype None keeps that of their keys."""
    pack = lambda x_RxLxJxK: Stored.pack(jnp.swapaxes(x_RxLxJxK, 1, 2), jnp.dtype(dtype or x_RxLxJxK.dtype))
    entries_last = lambda stored: dataclasses.replace(stored, numbers=jnp.swapaxes(stored.numbers, 2, 3))
    settings = {"group_size": group_size, "ring": max_length}

    def layer(kind, prompt):
      if kind.mixer == "delta":
        return DeltaCache.create(prompt, **settings)
      keys, values = map(pack, prompt)
      return LayerCache.create((entries_last(keys), values), **settings)

    own = [kind for kind in config.kinds if not kind.reuses]
    caches = tuple(layer(kind, prompt) for kind, prompt in zip(own, prompts, strict=True))
    lengths = jnp.zeros((len(prompt_mask_RxL), group_size), jnp.int32)
    return cls(caches, prompt_mask_RxL, lengths, jnp.zeros((), jnp.int32), max_length)

  @property
  def next_positions_RxG(self):
    """Rotary position of each slot's next token."""
    return jnp.sum(self.prompt_mask_RxL, axis=1)[:, None] + self.lengths_RxG

  def masks(self, window=None):
    """Masks of the next token: (over prompt tokens [R, G, L], over ring entries [R, G, T]).

    Args:
      window: tokens that it attends to, itself included; None: all.
    """
    prompt_positions_Rx1xL = (jnp.cumsum(self.prompt_mask_RxL, axis=1) - 1)[:, None]
    mask_RxGxL = jnp.broadcast_to(
      self.prompt_mask_RxL[:, None], (*self.lengths_RxG.shape, self.prompt_mask_RxL.shape[1])
    )
    prompt_mask = within_window(mask_RxGxL, self.next_positions_RxG[..., None], prompt_positions_Rx1xL, window)
    age_T = (self.clock - jnp.arange(self.ring)) % self.ring
    ring_mask = within_window(age_T <= self.lengths_RxG[..., None], age_T, 0, window)
    return prompt_mask, ring_mask

  def advance(self, layer_caches):
    """The cache after every block has stored the token."""
    lengths = self.lengths_RxG + 1
    return dataclasses.replace(self, layers=tuple(layer_caches), lengths_RxG=lengths, clock=self.clock + 1)

  def grown(self, ring: int):
    """The cache with longer rings, before the clock has wrapped around."""
    return dataclasses.replace(self, layers=tuple(layer.grown(ring) for layer in self.layers), ring=ring)

  def pick(self, slots):
    """The given slots, of all [R * G], each in a row of its own with its prompt."""
    rows = slots // self.lengths_RxG.shape[1]
    lengths = self.lengths_RxG.reshape(-1, 1)[slots]
    picked = tuple(layer.pick(slots, rows) for layer in self.layers)
    return dataclasses.replace(self, layers=picked, prompt_mask_RxL=self.prompt_mask_RxL[rows], lengths_RxG=lengths)


# Axis of a ring's entries, in numbers and in scales.
_KEY_ENTRIES, _VALUE_ENTRIES = -1, 3


def _rings(prompt: Stored, entry_axis: int, group_size: int, ring: int) -> Stored:
  """Empty rings in the layout of a prompt's keys or values, [R, J, ...], with their entries on that axis."""

  def empty(x):
    shape = [ring if axis == entry_axis % x.ndim else size for axis, size in enumerate(x.shape)]
    return jnp.zeros((*shape[:2], group_size, *shape[2:]), x.dtype)

  return jax.tree.map(empty, prompt)


def _expand_scales(scales, scores):
  """Scales [R, J, (G,) keys] in the rank of scores [R, J, G, r, keys]."""
  return scales[:, :, None, None] if scales.ndim == scores.ndim - 2 else scales[..., None, :]
