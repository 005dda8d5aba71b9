"""One decoder block: attention or a gated delta net, then a feed-forward layer, experts, or both.

Shape letters as in `layers`.
"""

import functools

import jax

from qempo_jax import sharding
from qempo_jax.linear import linear
from qempo_jax.models import delta_net
from qempo_jax.models import experts
from qempo_jax.models import layers
from qempo_jax.models.lora import LowRank


def run(layer, x_BxLxD, rotation, config, attend, recur=None, own=None):
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
  norm = lambda name, x: layers.rms_norm(x, layer[name], config.norm_epsilon, config.norm_offset)
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
      gated_BxLxF = layers.gated(gate_BxLxF, up_BxLxF, config)
    fed_BxLxD = project("down", gated_BxLxF)
  if config.num_experts:
    with jax.named_scope("experts"):
      compute = functools.partial(
        experts.feed_forward, layer, config=config, gated=functools.partial(layers.gated, config=config)
      )
      if config.experts_beside == "normed":
        to_router = layers.rms_norm(x_BxLxD, layer["router_norm"], config.norm_epsilon) * config.hidden_size**-0.5
        mixture_BxLxD, router = compute(norm("expert_norm", x_BxLxD), to_router)
        fed_BxLxD = norm("dense_post_norm", fed_BxLxD) + norm("expert_post_norm", mixture_BxLxD)
      else:
        if "dense_factor" in layer:
          fed_BxLxD = fed_BxLxD * jax.nn.sigmoid(project("dense_factor", h_BxLxD))
        mixture_BxLxD, router = compute(h_BxLxD, h_BxLxD)
        fed_BxLxD = fed_BxLxD + mixture_BxLxD if "gate" in layer else mixture_BxLxD
  x_BxLxD = x_BxLxD + post_norm("feed_forward_post_norm", fed_BxLxD)
  if own is not None:
    gate_BxLxP = layers.ACTIVATIONS[config.activation](project("block_gate", x_BxLxD))
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
  q = layers.apply_rope(head_norm("query", q), rotation)
  q = q if rotation.query_scale is None else q * rotation.query_scale[:, :, None, None]
  k = v = None
  if "key" in layer:
    k = heads("key", True)
    v = heads("value", False) if "value" in layer else k
    k = layers.apply_rope(head_norm("key", k), rotation)
    v = layers.rms_norm(v, 1.0, config.norm_epsilon) if config.value_norm else v
  with jax.named_scope("attention"):
    attended, carried = attend(q, k, v, layer["sinks"] if config.attention_sinks else None)
  attended = attended if gate is None else attended * jax.nn.sigmoid(gate)
  return project("output", attended.reshape(*attended.shape[:-2], -1)), carried
