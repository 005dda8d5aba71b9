"""The parameter tree of a decoder: shapes, and random values.

A nested dict. Every leaf under "layers" has the blocks as its first axis, or those that have it; see `stacks`.
"""

import math

import jax
import jax.numpy as jnp

from qempo_jax.models import delta_net
from qempo_jax.models import stacks
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import ModelConfig


def param_shapes(config: ModelConfig):
  """The parameter tree with each leaf's shape, which init and loading follow."""
  d, f = config.hidden_size, config.intermediate_size
  blocks = _mixer_shapes(config, config.head_dim, config.num_kv_heads)
  if any(kind.mixer == "global" for kind in config.kinds):
    sizes = config.global_head_dim or config.head_dim, config.global_kv_heads or config.num_kv_heads
    own = _mixer_shapes(config, *sizes)
    missing = ("value", "value_bias") if config.keys_as_values else ()
    blocks |= {f"global_{key}": own[key] for key in own if key not in missing}
  if config.delta_net:
    blocks |= delta_net.param_shapes(config.delta_net, d)
  e, g = config.num_experts, config.expert_width or f
  if e:
    blocks |= {"router": (d, e), "expert_gate": (e, d, g), "expert_up": (e, d, g), "expert_down": (e, g, d)}
  if not e or config.experts_beside != "none":
    blocks |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
  if config.experts_beside == "gated":
    blocks |= {"dense_factor": (d, 1)}
  if config.experts_beside == "normed":
    blocks |= {"router_norm": (d,), "expert_scale": (e,)}
    blocks |= dict.fromkeys(("expert_norm", "expert_post_norm", "dense_post_norm"), (d,))
  if w := config.shared_width:
    blocks |= {"shared_gate": (d, w), "shared_up": (d, w), "shared_down": (w, d)}
  outputs = {"gate": f, "up": f, "down": d, "router": e, "expert_gate": g, "expert_up": g, "expert_down": d}
  bias = lambda name: (e, outputs[name]) if name in EXPERTS else (outputs[name],)
  blocks |= {f"{name}_bias": bias(name) for name in config.biases if name in outputs}
  if config.norm_placement != "post":
    blocks |= {"attention_norm": (d,), "feed_forward_norm": (d,)}
  if config.norm_placement != "pre":
    blocks |= {"attention_post_norm": (d,), "feed_forward_post_norm": (d,)}
  if config.block_embedding:
    p = config.block_embedding[1]
    blocks |= {"block_gate": (d, p), "block_output": (p, d), "block_norm": (d,)}
  if config.block_scale:
    blocks |= {"block_scale": (1,)}
  stacked = {key: (len(stacks.members(key, config.kinds)), *shape) for key, shape in blocks.items()}
  shapes = {"embedding": (config.vocab_size, d), "final_norm": (d,)}
  if config.block_embedding:
    shapes |= {
      "block_embedding": (config.block_embedding[0], config.num_layers * p),
      "block_projection": (config.num_layers * p, d),
    }
    shapes |= {"block_projection_norm": (p,)}
  if not config.tie_embeddings:
    shapes["unembedding"] = (config.vocab_size, d)
  return shapes | {"layers": {key: shape for key, shape in stacked.items() if shape[0]}}


def _mixer_shapes(config: ModelConfig, k: int, j: int) -> dict[str, tuple[int, ...]]:
  """Shapes of a block's attention with heads of K numbers, J of them with keys and values."""
  d, h = config.hidden_size, config.num_heads
  shapes = {"query": (d, h, 2 * k if config.gated_attention else k), "key": (d, j, k), "value": (d, j, k)}
  shapes |= {"output": (h, k, d)}
  outputs = {"query": math.prod(shapes["query"][1:]), "key": j * k, "value": j * k, "output": d}
  shapes |= {f"{name}_bias": (outputs[name],) for name in config.biases if name in outputs}
  if config.qk_norm == "head":
    shapes |= {"query_norm": (k,), "key_norm": (k,)}
  if config.qk_norm == "width":
    shapes |= {"query_norm": (h * k,), "key_norm": (j * k,)}
  if config.attention_sinks:
    shapes |= {"sinks": (h,)}
  return shapes


_ONES = ("block_scale", "expert_scale", "delta_step", "delta_norm")  # Factors without the norms' offset.


def init(rng, config: ModelConfig, *, stddev=0.02, dtype=jnp.float32):
  """Random parameters: norms at one, biases at zero, every matrix normal with the given standard deviation."""
  shapes = param_shapes(config)
  leaves, treedef = jax.tree.flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
  keys = jax.random.split(rng, len(leaves))

  def leaf(path, shape, key):
    name = path[-1].key
    if name in _ONES:
      return jnp.ones(shape, dtype)
    if "norm" in name:
      return jnp.full(shape, 1 - config.norm_offset, dtype)
    if "bias" in name:
      return jnp.zeros(shape, dtype)
    if name == "delta_log_rate":
      return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))
    return stddev * jax.random.normal(key, shape, dtype)

  return treedef.unflatten([leaf(path, shape, key) for (path, shape), key in zip(leaves, keys)])
