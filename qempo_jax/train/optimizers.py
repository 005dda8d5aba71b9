"""The policy's optimizer; the multipliers have their own (`dual_controllers`)."""

from collections.abc import Callable
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax


def adamw(
  *,
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  final_fraction: float,
  b1: float,
  b2: float,
  weight_decay: float,
  max_grad_norm: float,
  moments_dtype: str = "float32",
) -> optax.GradientTransformation:
  """AdamW with clipping by global norm, a linear warm-up and a linear decay.

  Args:
    learning_rate: learning rate at the end of the warm-up.
    warmup_steps: updates of the warm-up; 0: none.
    total_steps: all updates.
    final_fraction: learning rate at the last update as a fraction of `learning_rate`; 1: constant.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: decay of matrices; factors, such as norms' scales, biases and sinks are not decayed.
    max_grad_norm: gradients of larger global norm are scaled down to it.
    moments_dtype: dtype of both stored moments; the arithmetic is float32.

  Returns:
    The gradient transformation.
  """
  settings = {"warmup_steps": warmup_steps, "total_steps": total_steps, "final_fraction": final_fraction}
  schedule = linear_schedule(learning_rate, **settings)
  decayed = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: not re.search("norm|bias|scale|sinks|delta_(log_rate|step)", jax.tree_util.keystr(path[-1:])),
    params,
  )
  inner = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)
  return optax.chain(clip_by_global_norm(max_grad_norm), with_state_dtype(inner, moments_dtype))


def linear_schedule(
  learning_rate: float, *, warmup_steps: int, total_steps: int, final_fraction: float
) -> optax.Schedule:
  """A linear warm-up to a learning rate, then a linear decay; see `adamw`."""
  warmup = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps)
  decay = optax.linear_schedule(learning_rate, learning_rate * final_fraction, total_steps - warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """g min(1, max_norm / |g|), equal to optax's up to rounding (Pascanu et al., arXiv 1211.5063).

  XLA fuses the factor into each use of the clipped gradient, and never writes a scaled copy.

  Args:
    max_norm: largest norm of all leaves together.
  """

  def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
    del params
    factor = jnp.minimum(1.0, max_norm / optax.tree.norm(updates))
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def with_state_dtype(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
  """The same transformation, computed in float32 at least, with the floats of its state stored in another dtype.

  Args:
    inner: the transformation.
    dtype: "float32" keeps wider floats as they are; "bfloat16" halves the state.

  Returns:
    The transformation; its state has the inner one's structure.
  """
  wide = lambda tree: _cast(tree, lambda leaf: jnp.promote_types(leaf.dtype, jnp.float32))
  narrow = wide if jnp.dtype(dtype) == jnp.float32 else lambda tree: _cast(tree, lambda _: dtype)

  def init(params: optax.Params) -> optax.OptState:
    return narrow(inner.init(wide(params)))

  def update(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    updates, state = inner.update(wide(updates), wide(state), wide(params))
    return updates, narrow(state)

  return optax.GradientTransformation(init, update)


def _cast(tree: Any, dtype_of: Callable[[jax.Array], Any]) -> Any:
  cast = lambda leaf: leaf.astype(dtype_of(leaf)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
  return jax.tree.map(cast, tree)
