"""Parts of a decoder block, as pure functions.

Shape letters: B rows, L positions, D width, H query heads, J key/value heads, K head width,
F feed-forward width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.linear import linear
from qempo_jax.masking import at_least_float32
from qempo_jax.models import delta_net
from qempo_jax.models import experts
from qempo_jax.models import head_products
from qempo_jax.models.lora import LowRank
from qempo_jax.token_stats import softcap

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


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
    return _ACTIVATIONS[config.activation](gate) * up
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


def block(layer, x_BxLxD, rotation, config, attend, recur=None, own=None):
  """One decoder block; `attend(q, k, v, sinks)` computes attention.

  Args:
    layer: this block's parameters.
    x_BxLxD: the residual stream.
    rotation: `positions.Rotation` of the rows' positions.
    config: the decoder's config, options and compute dtype.
    attend: maps rotated q [B, L, H, K], k and v [B, L, J, K], both None in a block without its own, and the heads' sinks
      [H] or None, to ([B, L, H, K], carried), with any `carried`, such as a cache.
    recur: of gated delta nets, `delta_net.Inputs` -> ([B, L, H, V], carried).
    own: [B, L, P] the block's own input, from `transformer.block_inputs`, or None.

  Returns:
    The residual stream after the block, `carried`, and the router's logits [B, L, E], None without experts.
  """
  norm = lambda name, x: rms_norm(x, layer[name], config.norm_epsilon, config.norm_offset)
  identity = lambda name, x: x
  pre_norm = norm if config.norm_placement != "post" else identity
  last_norm = norm if config.norm_placement != "pre" else identity
  # Comparing with 1 keeps the other families' programs as they are.
  scale = lambda x: x if config.residual_scale == 1 else x * config.residual_scale
  post_norm = lambda name, x: scale(last_norm(name, x))

  def project(name, x):
    weight = layer[name]
    if isinstance(weight, LowRank):
      product = weight.product(x, config.compute_dtype)
    else:
      product = linear(x, weight.reshape(x.shape[-1], -1), config.compute_dtype)
    return product + layer[f"{name}_bias"] if name in config.biases else product

  h_BxLxD = pre_norm("attention_norm", x_BxLxD)
  if "query" in layer:
    mixed_BxLxD, carried = _attention(layer, h_BxLxD, rotation, config, attend, project, norm)
  else:
    mixed_BxLxD, carried = delta_net.block(layer, h_BxLxD, config, recur, project)
  x_BxLxD = x_BxLxD + post_norm("attention_post_norm", mixed_BxLxD)
  h_BxLxD = pre_norm("feed_forward_norm", x_BxLxD)
  fed_BxLxD, router = 0.0, None
  if "gate" in layer:
    gate_BxLxF, up_BxLxF = project("gate", h_BxLxD), project("up", h_BxLxD)
    with jax.named_scope("gate"):
      gated_BxLxF = gated(gate_BxLxF, up_BxLxF, config)
    fed_BxLxD = project("down", gated_BxLxF)
  if config.num_experts:
    with jax.named_scope("experts"):
      compute = functools.partial(
        experts.feed_forward, layer, config=config, gated=functools.partial(gated, config=config)
      )
      if config.experts_beside == "normed":
        to_router = rms_norm(x_BxLxD, layer["router_norm"], config.norm_epsilon) * config.hidden_size**-0.5
        mixture_BxLxD, router = compute(norm("expert_norm", x_BxLxD), to_router)
        fed_BxLxD = norm("dense_post_norm", fed_BxLxD) + norm("expert_post_norm", mixture_BxLxD)
      else:
        if "dense_factor" in layer:
          fed_BxLxD = fed_BxLxD * jax.nn.sigmoid(project("dense_factor", h_BxLxD))
        mixture_BxLxD, router = compute(h_BxLxD, h_BxLxD)
        fed_BxLxD = fed_BxLxD + mixture_BxLxD if "gate" in layer else mixture_BxLxD
  x_BxLxD = x_BxLxD + post_norm("feed_forward_post_norm", fed_BxLxD)
  if own is not None:
    gate_BxLxP = _ACTIVATIONS[config.activation](project("block_gate", x_BxLxD))
    x_BxLxD = x_BxLxD + norm("block_norm", project("block_output", gate_BxLxP * own))
  if config.block_scale:
    x_BxLxD = x_BxLxD * jax.lax.stop_gradient(layer["block_scale"])
  return sharding.constrain_rows(x_BxLxD), carried, router


def _attention(layer, h_BxLxD, rotation, config, attend, project, norm):
  """A block's attention and its output projection: ([B, L, D], carried)."""
  width = layer["output"].shape[-2]

  def heads(name, normed):
    flat = project(name, h_BxLxD)
    if normed and config.qk_norm == "width":
      flat = norm(f"{name}_norm", flat)
    return flat.reshape(*flat.shape[:-1], *layer[name].shape[1:])

  head_norm = lambda name, x: norm(f"{name}_norm", x) if config.qk_norm == "head" else x
  q, gate = heads("query", True), None
  if config.gated_attention:
    q, gate = q[..., :width], q[..., width:]
  q = apply_rope(head_norm("query", q), rotation)
  q = q if rotation.query_scale is None else q * rotation.query_scale[:, :, None, None]
  k = v = None
  if "key" in layer:
    k = heads("key", True)
    v = heads("value", False) if "value" in layer else k
    k = apply_rope(head_norm("key", k), rotation)
    v = rms_norm(v, 1.0, config.norm_epsilon) if config.value_norm else v
  with jax.named_scope("attention"):
    attended, carried = attend(q, k, v, layer["sinks"] if config.attention_sinks else None)
  attended = attended if gate is None else attended * jax.nn.sigmoid(gate)
  return project("output", attended.reshape(*attended.shape[:-2], -1)), carried
