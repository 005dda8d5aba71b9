"""The seam of all training steps: score, loss and constraints are arguments, for any kind of policy."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qempo_jax import constraints as constraint_lib
from qempo_jax import duals
from qempo_jax.constraints import Constraint
from qempo_jax.train import accumulation
from qempo_jax.train.state import TrainState
from qempo_jax.train.state import move_policy


def policy_step(
  state: TrainState,
  batch: Any,
  *,
  score: Callable[[Any, Any], Any],
  loss: Callable[[Any, Any], jax.Array],
  optimizer: optax.GradientTransformation,
  micro_batches: int = 1,
) -> tuple[TrainState, Any, dict[str, jax.Array]]:
  """One update of the trainable parameters, which are kept if the loss or its gradient is not finite.

      L = sum_rows loss(score(params, rows), rows)

  Args:
    state: the train state.
    batch: a pytree with the batch's rows on each leaf's first axis.
    score: (parameters, rows) -> input of the loss and the measurements, such as `TokenStats` of a transformer or of an
      enumerable policy, or a reward head's scores.
    loss: (scored, rows) -> each row's part of the loss, [rows], already divided by the whole batch's count.
    optimizer: optimizer of the trainable parameters.
    micro_batches: parts of the batch whose gradients are summed, one part in memory at a time; they divide the rows.

  Returns:
    (the next state, scored: before the update, metrics: loss, grad_norm, skipped (0 or 1)).
  """

  def loss_fn(params, rows):
    scored = score(params, rows)
    return jnp.sum(loss(scored, rows)), scored

  (value, scored), gradient = accumulation.value_and_grad(loss_fn, state.params, batch, micro_batches=micro_batches)
  next_state, metrics = move_policy(state, gradient, value, optimizer)
  return next_state, scored, metrics


def dual_step(
  state: TrainState,
  measured: Mapping[str, jax.Array],
  *,
  constraints: Mapping[str, Constraint],
  controller: optax.GradientTransformation,
  averaging: float = 0.9,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update, from measured values, of the multipliers of bounded constraints and of the averages.

  Args:
    state: the train state.
    measured: values by name, of each constraint with a bound and of each entry of `state.averages` but multipliers.
    constraints: by name.
    controller: controller of the multipliers, see `duals`.
    averaging: decay of the averages.

  Returns:
    (the next state, metrics: `dual/NAME/multiplier` and `dual/NAME/value` of all constraints and `duals.dual_metrics`
    of the enforced ones, with multipliers before the update).
  """
  multipliers = duals.multipliers(state.dual_params)
  dual_params, dual_opt_state, enforced = duals.dual_step(
    state.dual_params, state.dual_opt_state, constraint_lib.enforced(constraints, measured), controller
  )
  metrics = {f"dual/{name}/multiplier": value for name, value in multipliers.items()}
  metrics |= {f"dual/{name}/value": measured[name] for name in constraints if name in measured} | enforced
  values = dict(measured) | {f"multiplier/{name}": value for name, value in multipliers.items()}
  averages = state.averages.update(values, averaging)
  return state.replace(dual_params=dual_params, dual_opt_state=dual_opt_state, averages=averages), metrics
