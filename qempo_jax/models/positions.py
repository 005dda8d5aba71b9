"""Rotary angles of positions, and which tokens attend to which: packed rows, windows.

Shape letters as in `layers`; C = K / 2 rotary pairs, fewer if only a part of a head is rotated.
"""

import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qempo_jax.models.config import Kind
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling

# Window of a block without one, longer than any sequence.
UNLIMITED = 2**30


class Block(NamedTuple):
  """Position-dependent options of a block: of one, or stacked over all [N]; None if no block has the option.

  Attributes:
    window: tokens that a query attends to, itself included.
    rotates: True if queries and keys are rotated.
  """

  window: Any = None
  rotates: Any = None


class Rotation(NamedTuple):
  """Rotation of queries and keys at given positions.

  Attributes:
    cos: [B, L, C] cosine of every rotary pair's angle.
    sin: [B, L, C] its sine.
    query_scale: [B, L] factor of queries after the rotation, or None.
  """

  cos: jax.Array
  sin: jax.Array
  query_scale: jax.Array | None = None


def rope_frequencies(dim: int, theta: float, scaling: RopeScaling | None = None, max_length: int | None = None):
  """Radians a token of every rotary pair, theta^(-2 c / K) unless scaled (Su et al., arXiv 2104.09864).

  Args:
    dim: K, rotated numbers of a head.
    theta: base.
    scaling: scaling of the frequencies, or None.
    max_length: longest sequence of the run, tokens; None: at most the original length.

  Returns:
    [C].
  """
  kind = scaling.kind if scaling else "none"
  length = max(max_length or 0, scaling.original_length) if scaling else 0
  if kind == "dynamic":
    growth = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
    theta = theta * growth ** (dim / (dim - 2))
  plain_C = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  if kind in ("none", "dynamic"):
    return plain_C
  if kind == "linear":
    return plain_C / scaling.factor
  if kind == "proportional":
    return jnp.where(jnp.arange(dim // 2) < int(scaling.part * dim // 2), plain_C / scaling.factor, 0.0)
  if kind == "longrope":
    factors = scaling.long_factors if length > scaling.original_length else scaling.short_factors
    return plain_C / jnp.array(factors, jnp.float32)
  # Frequencies with few periods within the first training length are divided, those with many kept, others
  # interpolated.
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  if kind == "llama3":
    periods_C = scaling.original_length * plain_C / (2 * math.pi)
    kept_C = jnp.clip((periods_C - low) / (high - low), 0.0, 1.0)
  else:
    pair = lambda periods: dim * math.log(scaling.original_length / (periods * 2 * math.pi)) / (2 * math.log(theta))
    first, last = pair(high), pair(low)
    if scaling.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last = last + 0.001 if first == last else last
    kept_C = 1 - jnp.clip((jnp.arange(dim // 2) - first) / (last - first), 0.0, 1.0)
  return (1 - kept_C) * plain_C / scaling.factor + kept_C * plain_C


def rope_rotations(config: ModelConfig, positions_BxL):
  """Rotations at the positions: (`Rotation` of all blocks, of blocks with a window or None)."""
  query_scale = None
  if config.query_growth:
    growth, length = config.query_growth
    query_scale = 1 + growth * jnp.log1p((positions_BxL // length).astype(jnp.float32))

  def rotation(frequencies_C, factor=1.0):
    angles_BxLxC = positions_BxL[..., None].astype(jnp.float32) * frequencies_C
    return Rotation(jnp.cos(angles_BxLxC) * factor, jnp.sin(angles_BxLxC) * factor, query_scale)

  scaling = config.rope_scaling
  width = config.global_head_dim or config.rotated
  frequencies_C = rope_frequencies(width, config.rope_theta, scaling, config.max_length)
  shared = rotation(frequencies_C, scaling.attention_factor if scaling else 1.0)
  if config.local_rope_theta is None:
    return shared, None
  return shared, rotation(rope_frequencies(config.rotated, config.local_rope_theta))


def block_rotation(rotations, block: Block, kind: Kind | None = None):
  """The rotation of one block, from `rope_rotations`; None is a block with attention."""
  rotation, local = rotations
  if local is not None and local.cos.shape != rotation.cos.shape:
    rotation = rotation if kind and kind.mixer == "global" else local
  elif local is not None and block.window is not None:
    rotation = jax.tree.map(lambda local, shared: jnp.where(block.window < UNLIMITED, local, shared), local, rotation)
  if block.rotates is None:
    return rotation
  cos, sin = jnp.where(block.rotates, rotation.cos, 1.0), jnp.where(block.rotates, rotation.sin, 0.0)
  return rotation._replace(cos=cos, sin=sin)


def list_blocks(config: ModelConfig) -> list[Block]:
  """Every block's options, of Python numbers; windows are `UNLIMITED` where only other blocks have one."""
  windows = [UNLIMITED if window is None else window for window in config.windows] or [None] * config.num_layers
  return list(map(Block, windows, config.rope_layers or [None] * config.num_layers))


def stacked_blocks(config: ModelConfig) -> Block:
  """The same as arrays [N], to be scanned with the blocks' parameters."""
  window, rotates = zip(*list_blocks(config))
  return Block(
    jnp.array(window, jnp.int32) if config.windows else None, jnp.array(rotates) if config.rope_layers else None
  )


def within_window(mask, query_positions, key_positions, window):
  """Restricts a mask to keys at most `window` - 1 tokens before their query; positions broadcast to the mask."""
  return mask if window is None else mask & (query_positions - key_positions < window)


class Tokens(NamedTuple):
  """Places of tokens in packed rows, of any equal shapes.

  Attributes:
    positions: rotary positions.
    oldest: lowest position that the token attends to.
    segments: as in `PackedGroups`.
  """

  positions: jax.Array
  oldest: jax.Array
  segments: jax.Array


def places(packed, window=None) -> Tokens:
  """Places of the columns of packed rows, [P, R], in a block with a window or None."""
  oldest = jnp.zeros_like(packed.positions) if window is None else packed.positions - window + 1
  return Tokens(packed.positions, oldest, packed.segments)


def attends(queries: Tokens, keys: Tokens, responses: int):
  """Mask [..., queries, keys] by which a token attends to its prompt and the earlier tokens of its own response.

  Args:
    queries: [..., queries].
    keys: [..., keys].
    responses: G, responses a prompt.
  """
  query = jax.tree.map(lambda x: x[..., :, None], queries)
  key = jax.tree.map(lambda x: x[..., None, :], keys)
  related = (key.segments == query.segments) | (key.segments == prompt_of(query.segments, responses))
  near = (key.positions <= query.positions) & (key.positions >= query.oldest)
  return related & near & (query.segments >= 0) & (key.segments >= 0)


def prompt_of(segments, responses: int):
  """Segment of the prompt that a segment's response answers, or of the prompt itself."""
  return segments - segments % (responses + 1)
