"""Keys and values of a group of samples that share their prompt.

The prompt's part is stored once a prompt, the response's part once a sample. Both are plain arrays of a
pytree with static shapes, so that decoding is one compiled loop.

Shape letters: N layers, P prompts, G samples of a prompt, L prompt length, T response length,
J key/value heads, K head width.
"""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax.models import layers
from qempo_jax.models.positions import within_window
from qempo_jax.token_stats import softcap


@struct.dataclass
class KVCache:
  """What the samples have seen so far.

  Attributes:
    prompt_keys: [N, P, L, J, K].
    prompt_values: likewise.
    prompt_mask_PxL: true on the prompts' own tokens.
    keys: [N, P, G, T, J, K], filled up to `length`.
    values: likewise.
    length: response tokens stored, a scalar.
  """

  prompt_keys: jax.Array
  prompt_values: jax.Array
  prompt_mask_PxL: jax.Array
  keys: jax.Array
  values: jax.Array
  length: jax.Array

  @classmethod
  def create(cls, prompt_keys, prompt_values, prompt_mask_PxL, *, group_size, max_length):
    """An empty response part beside prefilled prompts."""
    num_layers, prompts, _, heads, width = prompt_keys.shape
    shape = (num_layers, prompts, group_size, max_length, heads, width)
    empty = jnp.zeros(shape, prompt_keys.dtype)
    return cls(prompt_keys, prompt_values, prompt_mask_PxL, empty, empty, jnp.zeros((), jnp.int32))

  @property
  def next_position_P(self):
    """Rotary position of the token to come."""
    return jnp.sum(self.prompt_mask_PxL, axis=1) + self.length

  def attend(self, layer, q_PxGxHxK, k_PxGxJxK, v_PxGxJxK, config, window=None):
    """Stores this token's keys and values, then attends to the prompt and to the sample's own past.

    Args:
      layer: index of the decoder block.
      q_PxGxHxK: rotated queries.
      k_PxGxJxK: rotated keys.
      v_PxGxJxK: values.
      config: the decoder's shape: scale and soft-cap of the scores.
      window: tokens that a query of this block sees, itself included; None for all.

    Returns:
      ([P, G, H, K], the cache with this layer's keys and values stored).
    """
    start = (layer, 0, 0, self.length, 0, 0)
    store = lambda cache, new: jax.lax.dynamic_update_slice(cache, new[None, :, :, None], start)
    cache = dataclasses.replace(
        self, keys=store(self.keys, k_PxGxJxK), values=store(self.values, v_PxGxJxK)
    )
    at = lambda array: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
    own_k, own_v = at(cache.keys), at(cache.values)
    shared_k, shared_v = at(cache.prompt_keys), at(cache.prompt_values)

    query_position_Px1 = self.next_position_P[:, None]
    prompt_positions_PxL = jnp.cumsum(self.prompt_mask_PxL, axis=1) - 1
    sees_prompt = within_window(self.prompt_mask_PxL, query_position_Px1, prompt_positions_PxL, window)
    times_T = jnp.arange(own_k.shape[2])
    sees_own = within_window(times_T <= self.length, self.length, times_T, window)

    q = layers.group_heads(q_PxGxHxK, k_PxGxJxK.shape[2]) * config.attention_scale
    to_prompt = jnp.einsum("pgjrk,pljk->pgjrl", q, shared_k, preferred_element_type=jnp.float32)
    to_own = jnp.einsum("pgjrk,pgtjk->pgjrt", q, own_k, preferred_element_type=jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    cap = lambda scores: softcap(scores, config.attention_softcap)
    to_prompt = jnp.where(sees_prompt[:, None, None, None], cap(to_prompt), lowest)
    to_own = jnp.where(sees_own, cap(to_own), lowest)
    weights = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1), axis=-1)
    on_prompt, on_own = jnp.split(weights.astype(shared_v.dtype), [shared_k.shape[1]], axis=-1)
    attended = jnp.einsum("pgjrl,pljk->pgjrk", on_prompt, shared_v)
    attended += jnp.einsum("pgjrt,pgtjk->pgjrk", on_own, own_v)
    return attended.reshape(q_PxGxHxK.shape), cache

  def advance(self):
    """The cache after every layer has stored the token."""
    return dataclasses.replace(self, length=self.length + 1)
