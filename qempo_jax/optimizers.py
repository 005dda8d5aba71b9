"""The policy's optimizer; the multipliers have their own (`dual_controllers`)."""

import jax
import optax


def adamw(
    *,
    learning_rate: float,
    warmup_steps: int,
    b1: float,
    b2: float,
    weight_decay: float,
    max_grad_norm: float,
) -> optax.GradientTransformation:
  """AdamW with clipping by global norm and a linear warm-up to a constant rate.

  Args:
    learning_rate: after the warm-up.
    warmup_steps: updates from 0 to that rate; 0 for none.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: of matrices; norms' scales are not decayed.
    max_grad_norm: gradients of larger global norm are scaled down to it.

  Returns:
    The gradient transformation.
  """
  schedule = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps)
  decayed = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: "norm" not in path[-1].key, params
  )
  return optax.chain(
      optax.clip_by_global_norm(max_grad_norm),
      optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed),
  )
