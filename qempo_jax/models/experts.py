"""Mixture of experts: each token's feed-forward layer is a weighted sum of a few of E experts.

    y = sum_{e in top S of p} w_e down_e (act(gate_e x) * (up_e x)),    p = softmax(router x)

Each product may have a bias. w is p, or p divided by its sum over the chosen experts, and may have a learned factor of
each expert. The tokens are sorted by expert and multiplied by `jax.lax.ragged_dot`; no token is dropped, so the result
is exact for any routing (Shazeer et al., arXiv 1701.06538; Fedus et al., arXiv 2101.03961).

On a mesh, the experts are sharded over the tensor axis. Each device computes its own experts for all tokens of its rows,
and the results are summed over the axis.

Shape letters as in `layers`; E experts, S chosen ones of a token, M tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from qempo_jax import sharding
from qempo_jax.linear import linear
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.lora import LowRank


def feed_forward(layer, x_BxLxD, router_BxLxD, *, config, gated):
  """The mixture's output and its router's logits.

  Args:
    layer: a block's parameters.
    x_BxLxD: the block's normed residual stream.
    router_BxLxD: what the router reads, the same in most models.
    config: the decoder's config.
    gated: (gate x, up x) -> their gated product.

  Returns:
    ([B, L, D], [B, L, E]).
  """
  logits_BxLxE = linear(router_BxLxD, layer["router"], config.compute_dtype)
  if "router" in config.biases:
    logits_BxLxE = logits_BxLxE + layer["router_bias"]
  probs_BxLxE = jax.nn.softmax(logits_BxLxE, axis=-1)
  weights_BxLxS, chosen_BxLxS = jax.lax.top_k(probs_BxLxE, config.experts_per_token)
  if config.normalise_experts:
    weights_BxLxS = weights_BxLxS / jnp.sum(weights_BxLxS, axis=-1, keepdims=True)
  if "expert_scale" in layer:
    weights_BxLxS = weights_BxLxS * layer["expert_scale"][chosen_BxLxS]
  compute = functools.partial(_mixture, config=config, gated=gated)
  arrays, biases = (x_BxLxD, weights_BxLxS, chosen_BxLxS), [f"{name}_bias" for name in EXPERTS if name in config.biases]
  weights = {name: layer[name] for name in (*EXPERTS, *biases)}
  free = sharding.split_axes()
  shards = sharding.row_shards() * sharding.head_shards() * sharding.sequence_shards()
  if shards == 1:
    return compute(*arrays, weights), logits_BxLxE
  rows, parts = x_BxLxD.shape[0], x_BxLxD.shape[1]
  row_axes = tuple(axis for axis in sharding.ROWS if axis in free) if rows % sharding.row_shards() == 0 else ()
  tokens = sharding.SEQUENCE if sharding.sequence_shards() > 1 and parts % sharding.sequence_shards() == 0 else None
  axis = "tensor" if sharding.head_shards() > 1 and config.num_experts % sharding.head_shards() == 0 else None
  activations = P(row_axes or None, tokens)
  return jax.shard_map(
    functools.partial(compute, axis=axis),
    in_specs=(*(activations,) * 3, P(axis)),
    out_specs=activations,
    axis_names=free,
    check_vma=False,
  )(*arrays, weights), logits_BxLxE


def _mixture(x_BxLxD, weights_BxLxS, chosen_BxLxS, weights, *, config, gated, axis=None):
  """The experts' weighted sum, of the experts that this device holds; summed over the axis."""
  own, chosen = weights["expert_gate"].shape[0], chosen_BxLxS.reshape(-1)
  first = jax.lax.axis_index(axis) * own if axis else 0
  expert = jnp.where((chosen >= first) & (chosen < first + own), chosen - first, own)
  order = jnp.argsort(expert)
  sizes_E = jnp.bincount(expert, length=own + 1)[:own].astype(jnp.int32)
  held = (jnp.arange(len(order)) < jnp.sum(sizes_E))[:, None]
  # Rows of other devices' experts come last and are zero: their products are undefined on some platforms.
  rows = jnp.where(held, x_BxLxD.reshape(-1, x_BxLxD.shape[-1])[order // config.experts_per_token], 0)

  def product(x, name):
    out = _product(x, weights[name], sizes_E, config.compute_dtype)
    return out + weights[f"{name}_bias"][jnp.minimum(expert[order], own - 1)] if name in config.biases else out

  out = product(gated(product(rows, "expert_gate"), product(rows, "expert_up")), "expert_down")
  out = jnp.where(held, out, 0) * weights_BxLxS.reshape(-1)[order][:, None]
  out = out[jnp.argsort(order)].reshape(*chosen_BxLxS.shape, -1).sum(axis=2)
  return jax.lax.psum(out, axis) if axis else out


def _product(x_MxI, weight, sizes_E, dtype):
  """Products of rows sorted by expert with their expert's matrix [E, I, O], operands rounded, float32 sums: [M, O]."""
  ragged = lambda x, w: jax.lax.ragged_dot(
    x.astype(dtype), w.astype(dtype), sizes_E, preferred_element_type=jnp.float32
  )
  if not isinstance(weight, LowRank):
    return ragged(x_MxI, weight)
  return ragged(x_MxI, weight.base) + weight.scale * ragged(ragged(x_MxI, weight.a), weight.b)


def balancing_loss(logits_NxBxLxE, valid_BxL, experts_per_token: int):
  """Load-balancing loss of a batch, E sum_e f_e p_e; S if experts are used evenly (Fedus et al., arXiv 2101.03961).

  f_e is the number of times that a token of any block chooses an expert, and p_e its mean probability, both averaged
  over blocks and tokens.

  Args:
    logits_NxBxLxE: the routers' logits.
    valid_BxL: True on tokens, False on padding.
    experts_per_token: S.

  Returns:
    A scalar.
  """
  probs = jax.nn.softmax(logits_NxBxLxE.astype(jnp.float32), axis=-1)
  experts = probs.shape[-1]
  chosen = jax.lax.top_k(probs, experts_per_token)[1]
  counts = jnp.sum(jax.nn.one_hot(chosen, experts), axis=-2)
  mean = lambda x: jnp.sum(x * valid_BxL[..., None], axis=(0, 1, 2)) / (len(x) * jnp.maximum(jnp.sum(valid_BxL), 1))
  return experts * jnp.sum(mean(counts) * mean(probs))
