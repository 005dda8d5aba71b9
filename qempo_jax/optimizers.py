"""The policy's optimizer; the multipliers have their own (`dual_controllers`)."""

import jax
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
) -> optax.GradientTransformation:
  """AdamW with clipping by global norm, a linear warm-up and a linear decay.

  Args:
    learning_rate: at the end of the warm-up.
    warmup_steps: updates until then; 0 for none.
    total_steps: updates in all.
    final_fraction: of the learning rate, reached at the last update; 1 keeps it constant.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: of matrices; norms' scales are not decayed.
    max_grad_norm: gradients of larger global norm are scaled down to it.

  Returns:
    The gradient transformation.
  """
  warmup = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps)
  decay = optax.linear_schedule(learning_rate, learning_rate * final_fraction, total_steps - warmup_steps)
  schedule = optax.join_schedules([warmup, decay], [warmup_steps])
  decayed = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: "norm" not in path[-1].key, params
  )
  return optax.chain(
      optax.clip_by_global_norm(max_grad_norm),
      optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed),
  )
