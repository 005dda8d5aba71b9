"""Parts of decoder blocks, as pure functions.

Shape letters: B rows, L positions, D width, H query heads, J key/value heads, K head width,
F feed-forward width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.models import head_products
from qempo_jax.token_stats import softcap

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


@jax.named_scope("norm")
def rms_norm(x, scale, epsilon, offset=0.0):
  """Root-mean-square normalisation, x / rms(x) * (scale + offset) (Zhang & Sennrich, arXiv 1910.07467)."""
  mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
  scale = at_least_float32(scale) + offset if offset else scale
  return (x * jax.lax.rsqrt(mean_square + epsilon)).astype(x.dtype) * scale


@jax.named_scope("rope")
def apply_rope(x_BxLxHxK, rotation):
  """Rotates the pairs (i, i + C) of every head's first 2 C numbers by angles with the given cosine and sine."""
  cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
  pairs = cos.shape[-1]
  first, second, rest = jnp.split(x_BxLxHxK.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
  return rotated.astype(x_BxLxHxK.dtype)


def group_heads(q_BxLxHxK, num_kv_heads):
  """[B, L, H, K] -> [B, L, J, H / J, K]: the query heads grouped by their key head."""
  rows, length, heads, width = q_BxLxHxK.shape
  return q_BxLxHxK.reshape(rows, length, num_kv_heads, heads // num_kv_heads, width)


def softmax(scores, sinks):
  """e^s / (e^sink + sum e^s) over the last axis, in which a sink takes weight and gives no value.

  Args:
    scores: [..., keys].
    sinks: broadcastable to [..., 1], or None for a plain softmax.

  Returns:
    [..., keys].
  """
  if sinks is None:
    return jax.nn.softmax(scores, axis=-1)
  top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sinks))
  weights = jnp.exp(scores - top)
  return weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sinks - top))


def gated(gate, up, config):
  """The gated product of a feed-forward layer, `ModelConfig.activation` or `clamped_gate`: [..., F]."""
  if config.clamped_gate is None:
    return ACTIVATIONS[config.activation](gate) * up
  slope, limit = config.clamped_gate
  gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
  return gate * jax.nn.sigmoid(slope * gate) * (1 + up)


def attention(q_BxLxHxK, k_BxMxJxK, v_BxMxJxK, mask_BxLxM, config, sinks_H=None):
  """Grouped-query attention, softmax(cap(scale q k')) v, without repeating keys and values.

  Args:
    q_BxLxHxK: queries.
    k_BxMxJxK: keys.
    v_BxMxJxK: values.
    mask_BxLxM: True if a query attends to a key. A query without keys gets a plain mean.
    config: the decoder's config: scale and soft-cap of the scores.
    sinks_H: the heads' sinks, or None; see `softmax`.

  Returns:
    [B, L, H, K].
  """
  q = group_heads(q_BxLxHxK, k_BxMxJxK.shape[2]) * config.attention_scale
  # With heads first, the scores, the largest array here, need no transpose.
  q_BxJxLxrxK = jnp.swapaxes(q, 1, 2)
  k_BxJxMxK, v_BxJxMxK = jnp.swapaxes(k_BxMxJxK, 1, 2), jnp.swapaxes(v_BxMxJxK, 1, 2)
  scores = softcap(head_products.scores(q_BxJxLxrxK, k_BxJxMxK), config.attention_softcap)
  scores = jnp.where(mask_BxLxM[:, None, :, None], scores, jnp.finfo(jnp.float32).min)
  sinks = None if sinks_H is None else at_least_float32(sinks_H).reshape(k_BxJxMxK.shape[1], 1, -1, 1)
  attended = head_products.mix(softmax(scores, sinks), v_BxJxMxK)
  return jnp.swapaxes(attended, 1, 2).reshape(q_BxLxHxK.shape)
