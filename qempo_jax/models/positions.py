"""Rotary angles of positions, and windows that limit attention to the nearest tokens.

Shape letters as in `layers`; C = K / 2 rotary pairs.
"""

import math

import jax
import jax.numpy as jnp

from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling

# Window of a block without one, longer than any sequence.
UNLIMITED = 2**30


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None):
  """Radians a token of every rotary pair, theta^(-2 c / K) unless scaled (Su et al., arXiv 2104.09864).

  Args:
    head_dim: K.
    theta: base.
    scaling: scaling of the frequencies, or None.

  Returns:
    [C].
  """
  plain_C = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling is None:
    return plain_C
  if scaling.kind == "linear":
    return plain_C / scaling.factor
  # Frequencies with few periods within the first training length are divided, those with many kept, others
  # interpolated.
  periods_C = scaling.original_length * plain_C / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept_C = jnp.clip((periods_C - low) / (high - low), 0.0, 1.0)
  return (1 - kept_C) * plain_C / scaling.factor + kept_C * plain_C


def rope_rotations(config: ModelConfig, positions_BxL):
  """Cosine and sine [B, L, C] of every position's angles: (of all blocks, of blocks with a window or None)."""

  def rotation(frequencies_C):
    angles_BxLxC = positions_BxL[..., None].astype(jnp.float32) * frequencies_C
    return jnp.cos(angles_BxLxC), jnp.sin(angles_BxLxC)

  shared = rotation(rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
  if config.local_rope_theta is None:
    return shared, None
  return shared, rotation(rope_frequencies(config.head_dim, config.local_rope_theta))


def block_rotation(rotations, window):
  """The rotation of one block, from `rope_rotations`."""
  shared, local = rotations
  if local is None or window is None:
    return shared
  return jax.tree.map(lambda local, shared: jnp.where(window < UNLIMITED, local, shared), local, shared)


def block_windows(config: ModelConfig):
  """Every block's window, to be scanned with its parameters: [N], or None if no block has one."""
  if not config.windows:
    return None
  return jnp.array([UNLIMITED if window is None else window for window in config.windows], jnp.int32)


def within_window(mask, query_positions, key_positions, window):
  """Restricts a mask to keys at most `window` - 1 tokens before their query; positions broadcast to the mask."""
  return mask if window is None else mask & (query_positions - key_positions < window)
