"""A decoder as pure functions over stacked parameters.

Parameters are a nested dict; every leaf under "layers" has the layers as its first axis, so that one
`lax.scan` runs them all and compile time does not grow with depth.
"""

import jax
import jax.numpy as jnp

from qempo_jax.models import layers
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache


def param_shapes(config: ModelConfig):
  """The parameter tree with each leaf's shape, the one description that init and loading follow."""
  n, d, f = config.num_layers, config.hidden_size, config.intermediate_size
  h, j, k = config.num_heads, config.num_kv_heads, config.head_dim
  shapes = {
      "embedding": (config.vocab_size, d),
      "layers": {
          "attention_norm": (n, d),
          "query": (n, d, h, k),
          "key": (n, d, j, k),
          "value": (n, d, j, k),
          "output": (n, h, k, d),
          "feed_forward_norm": (n, d),
          "gate": (n, d, f),
          "up": (n, d, f),
          "down": (n, f, d),
      },
      "final_norm": (d,),
  }
  if not config.tie_embeddings:
    shapes["unembedding"] = (config.vocab_size, d)
  return shapes


def init(rng, config: ModelConfig, *, stddev=0.02, dtype=jnp.float32):
  """Random parameters: norms at one, every matrix normal with the given standard deviation."""
  shapes = param_shapes(config)
  leaves, treedef = jax.tree.flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
  keys = jax.random.split(rng, len(leaves))

  def leaf(path, shape, key):
    if "norm" in path[-1].key:
      return jnp.ones(shape, dtype)
    return stddev * jax.random.normal(key, shape, dtype)

  return treedef.unflatten([leaf(path, shape, key) for (path, shape), key in zip(leaves, keys)])


def unembedding(params):
  """The output projection [V, D]: its own matrix, or the embedding where they are tied."""
  return params.get("unembedding", params["embedding"])


def rounded(params, config: ModelConfig):
  """The matrices of the products in the compute dtype, once for many uses: (params, unembedding).

  The embedding that is looked up stays as it is, so that the results are those of the unrounded parameters.
  """
  cast = lambda leaf: leaf.astype(config.compute_dtype) if leaf.ndim > 2 else leaf
  matrices = jax.tree.map(cast, params["layers"])
  return params | {"layers": matrices}, unembedding(params).astype(config.compute_dtype)


def forward(params, config: ModelConfig, tokens_BxL, positions_BxL, mask_BxLxL, *, remat=True):
  """Hidden state of every position, after the final norm.

  Args:
    params: the parameter tree.
    config: the decoder's shape.
    tokens_BxL: token ids.
    positions_BxL: rotary positions; those of padding do not matter.
    mask_BxLxL: true where a query (second axis) may see a key (third axis).
    remat: recompute each block in the backward pass instead of keeping its activations.

  Returns:
    [B, L, D].
  """
  angles = layers.rope_angles(positions_BxL, config.head_dim, config.rope_theta)

  def body(x_BxLxD, layer):
    attend = lambda q, k, v: (layers.attention(q, k, v, mask_BxLxL), None)
    return layers.block(layer, x_BxLxD, angles, config, attend)

  body = jax.checkpoint(body) if remat else body
  x_BxLxD, _ = jax.lax.scan(body, params["embedding"][tokens_BxL], params["layers"])
  return layers.rms_norm(x_BxLxD, params["final_norm"], config.norm_epsilon)


def prefill(params, config: ModelConfig, tokens_PxL, mask_PxL):
  """Runs the prompts once, keeping their keys and values.

  Args:
    params: the parameter tree.
    config: the decoder's shape.
    tokens_PxL: prompts, padded on either side.
    mask_PxL: true on the prompts' own tokens; positions are counted from it.

  Returns:
    (hidden [P, D] of each prompt's last token, keys [N, P, L, J, K], values likewise).
  """
  positions_PxL = jnp.cumsum(mask_PxL, axis=1) - 1
  mask_PxLxL = causal_mask(positions_PxL, mask_PxL)
  angles = layers.rope_angles(positions_PxL, config.head_dim, config.rope_theta)

  def body(x_PxLxD, layer):
    attend = lambda q, k, v: (layers.attention(q, k, v, mask_PxLxL), (k, v))
    return layers.block(layer, x_PxLxD, angles, config, attend)

  x_PxLxD, (keys, values) = jax.lax.scan(body, params["embedding"][tokens_PxL], params["layers"])
  length = tokens_PxL.shape[1]
  last_P = length - 1 - jnp.argmax(mask_PxL[:, ::-1], axis=1)
  hidden_PxD = jnp.take_along_axis(x_PxLxD, last_P[:, None, None], axis=1)[:, 0]
  return layers.rms_norm(hidden_PxD, params["final_norm"], config.norm_epsilon), keys, values


def decode(params, config: ModelConfig, tokens_PxG, cache: KVCache):
  """One more token for every sample of every prompt's group.

  Args:
    params: the parameter tree.
    config: the decoder's shape.
    tokens_PxG: the tokens just sampled.
    cache: what came before them.

  Returns:
    (hidden [P, G, D], the cache with these tokens in it).
  """
  positions_PxG = jnp.broadcast_to(cache.next_position_P[:, None], tokens_PxG.shape)
  angles = layers.rope_angles(positions_PxG, config.head_dim, config.rope_theta)

  def body(carry, layer_and_index):
    x_PxGxD, cache = carry
    layer, index = layer_and_index
    attend = lambda q, k, v: cache.attend(index, q, k, v)
    x_PxGxD, cache = layers.block(layer, x_PxGxD, angles, config, attend)
    return (x_PxGxD, cache), None

  indices = jnp.arange(config.num_layers)
  x_PxGxD, cache = jax.lax.scan(
      body, (params["embedding"][tokens_PxG], cache), (params["layers"], indices)
  )[0]
  hidden = layers.rms_norm(x_PxGxD, params["final_norm"], config.norm_epsilon)
  return hidden, cache.advance()


def causal_mask(positions_BxL, valid_BxL):
  """Each valid token sees the valid tokens at or before its own position: [B, L, L]."""
  earlier = positions_BxL[:, None, :] <= positions_BxL[:, :, None]
  return earlier & valid_BxL[:, None, :] & valid_BxL[:, :, None]
