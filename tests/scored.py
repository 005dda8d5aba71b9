"""`scoring.score_groups` compiled as one program: operation by operation it takes seconds for every new shape."""

import jax

from qempo_jax import scoring

score_groups = jax.jit(
  scoring.score_groups, static_argnames=("config", "group_size", "max_length", "chunk_size", "remat", "transform")
)
