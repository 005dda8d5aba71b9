"""The parts of a decoder block, as pure functions.

Shape letters: B rows, L positions, D width, H query heads, J key/value heads, K head width,
F feed-forward width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from qempo_jax.linear import linear


def rms_norm(x, scale, epsilon):
  """Root-mean-square normalisation, x / rms(x) * scale (Zhang & Sennrich, arXiv 1910.07467)."""
  mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
  return (x * jax.lax.rsqrt(mean_square + epsilon)).astype(x.dtype) * scale


def rope_angles(positions_BxL, head_dim, theta):
  """Angle of every rotary pair at every position (Su et al., arXiv 2104.09864): [B, L, K / 2]."""
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  return positions_BxL[..., None].astype(jnp.float32) * frequencies


def apply_rope(x_BxLxHxK, angles_BxLxC):
  """Rotates the pairs (i, i + K / 2) of every head by their angles."""
  cos, sin = jnp.cos(angles_BxLxC)[:, :, None], jnp.sin(angles_BxLxC)[:, :, None]
  first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BxLxHxK.dtype)


def group_heads(q_BxLxHxK, num_kv_heads):
  """[B, L, H, K] -> [B, L, J, H / J, K]: the query heads beside the key head they share."""
  rows, length, heads, width = q_BxLxHxK.shape
  return q_BxLxHxK.reshape(rows, length, num_kv_heads, heads // num_kv_heads, width)


def attention(q_BxLxHxK, k_BxMxJxK, v_BxMxJxK, mask_BxLxM):
  """Grouped-query attention, softmax(q k' / sqrt(K)) v, without repeating keys and values.

  Args:
    q_BxLxHxK: queries.
    k_BxMxJxK: keys.
    v_BxMxJxK: values.
    mask_BxLxM: true where a query may see a key. A query that sees none gets a plain mean.

  Returns:
    [B, L, H, K].
  """
  q = group_heads(q_BxLxHxK, k_BxMxJxK.shape[2]) * (q_BxLxHxK.shape[-1] ** -0.5)
  scores = jnp.einsum("bljrk,bmjk->bjrlm", q, k_BxMxJxK, preferred_element_type=jnp.float32)
  scores = jnp.where(mask_BxLxM[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BxMxJxK.dtype)
  return jnp.einsum("bjrlm,bmjk->bljrk", weights, v_BxMxJxK).reshape(q_BxLxHxK.shape)


def block(layer, x_BxLxD, angles_BxLxC, config, attend):
  """One decoder block; `attend(q, k, v)` says what a query sees.

  Args:
    layer: this block's parameters.
    x_BxLxD: the residual stream.
    angles_BxLxC: rotary angles of the rows' positions.
    config: the decoder's shape and compute dtype.
    attend: maps rotated q [B, L, H, K], k and v [B, L, J, K] to ([B, L, H, K], carried), where
      `carried` is returned as it is (a cache, or nothing).

  Returns:
    The residual stream after the block, and `carried`.
  """
  product = lambda x, w: linear(x, w, config.compute_dtype)
  heads = lambda x, w: product(x, w.reshape(w.shape[0], -1)).reshape(*x.shape[:-1], *w.shape[1:])

  h_BxLxD = rms_norm(x_BxLxD, layer["attention_norm"], config.norm_epsilon)
  q = apply_rope(heads(h_BxLxD, layer["query"]), angles_BxLxC)
  k = apply_rope(heads(h_BxLxD, layer["key"]), angles_BxLxC)
  v = heads(h_BxLxD, layer["value"])
  attended, carried = attend(q, k, v)
  joined_BxLxE = attended.reshape(*attended.shape[:-2], -1)
  x_BxLxD = x_BxLxD + product(joined_BxLxE, layer["output"].reshape(-1, x_BxLxD.shape[-1]))
  h_BxLxD = rms_norm(x_BxLxD, layer["feed_forward_norm"], config.norm_epsilon)
  gated_BxLxF = jax.nn.silu(product(h_BxLxD, layer["gate"])) * product(h_BxLxD, layer["up"])
  return x_BxLxD + product(gated_BxLxF, layer["down"]), carried
