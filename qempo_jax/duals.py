"""Lagrange multipliers as learned parameters: constraints, the two halves of the Lagrangian, controllers.

A constraint is satisfied iff value <= bound. The multipliers live in the train state as a small pytree,
`{name: {leaf: scalar}}`. The leaf's name tells the stored form: `multiplier`, `log_multiplier` or
`softplus_multiplier`. They have an optimizer of their own, usually `pi_controller`:

    terms = lagrangian_terms(dual_params, {"quality": at_least(mean_reward, 0.9), "kl": at_most(kl, 5.0)})
    loss = (objective + terms.penalty) / step_divisor(dual_params, constraints) + terms.dual_loss

The policy gets gradients from `penalty` alone and the multipliers from `dual_loss` alone, by `stop_gradient`.
Every controller here acts on the stored leaf and is driven by the violation itself (see `lagrangian_terms`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from qempo_jax.dual_controllers import pi_controller
from qempo_jax.dual_controllers import plain_ascent
from qempo_jax.dual_controllers import project_multipliers
from qempo_jax.dual_parametrisation import DualParams
from qempo_jax.dual_parametrisation import init_dual_params
from qempo_jax.dual_parametrisation import items
from qempo_jax.dual_parametrisation import multipliers
from qempo_jax.dual_state import PIControllerState
from qempo_jax.dual_state import hold_unmeasured
from qempo_jax.dual_state import measured
from qempo_jax.dual_state import skipped
from qempo_jax.errors import InputError

__all__ = [
  "AtLeast",
  "Constraint",
  "DualParams",
  "LagrangianTerms",
  "PIControllerState",
  "at_least",
  "at_most",
  "dual_metrics",
  "dual_step",
  "init_dual_params",
  "lagrangian_terms",
  "measured",
  "multipliers",
  "pi_controller",
  "plain_ascent",
  "project_multipliers",
  "resolve_floor",
  "skipped",
  "step_divisor",
]


class Constraint(NamedTuple):
  """One measured constraint, satisfied iff value <= bound; both are scalars in the same unit."""

  value: chex.Numeric
  bound: chex.Numeric

  @property
  def violation(self) -> chex.Numeric:
    """value - bound: positive if the constraint is violated."""
    return self.value - self.bound


class AtLeast(Constraint):
  """A lower bound, stored with negated value and bound; metrics negate them back."""

  __slots__ = ()


def at_most(value: chex.Numeric, bound: chex.Numeric) -> Constraint:
  """Returns the constraint value <= bound, such as a KL budget in nats."""
  return Constraint(value, bound)


def at_least(value: chex.Numeric, bound: chex.Numeric) -> Constraint:
  """Returns the constraint value >= bound, such as a quality floor, as -value <= -bound."""
  return AtLeast(-value, -bound)


class LagrangianTerms(NamedTuple):
  """The two halves of the Lagrangian: `penalty` trains the policy, `dual_loss` the multipliers."""

  penalty: jax.Array
  dual_loss: jax.Array


def lagrangian_terms(dual_params: DualParams, constraints: Mapping[str, Constraint]) -> LagrangianTerms:
  """Penalty that trains the policy, and loss that trains the multipliers.

      penalty   =  sum_i sg(m_i) (value_i - bound_i)
      dual_loss = -sum_i m_i sg(value_i - bound_i)

  The gradient of `dual_loss` with respect to a stored leaf is minus the violation under *every* parametrisation:
  m_i enters through a straight-through estimate with derivative 1 in the leaf. For a linear leaf that is the plain
  gradient. For a log leaf it is mirror ascent (d log m = gain * violation), which does not stall near 0 as the chain
  rule's extra factor m would.

  Source: Lagrangian duality; the split as in "Responsive Safety in Reinforcement Learning by PID Lagrangian
  Methods" (Stooke et al., arXiv 2007.03964).

  Args:
    dual_params: from `init_dual_params`. A leaf without a constraint gets zero gradient, which a controller
      reads as a violation of 0; `dual_step` tells the two apart.
    constraints: measured constraints by name, scalars averaged over prompts and hosts.

  Returns:
    The two scalars, in units of the objective.

  Raises:
    InputError: a constraint has no dual parameters, or its value or bound is not a scalar.
  """
  values = _enforced(dual_params, constraints)
  leaves = {name: stored for name, _, stored in items(dual_params)}
  penalty = dual_loss = jnp.zeros(())
  for name, constraint in constraints.items():
    violation = jnp.asarray(constraint.violation)
    multiplier = jax.lax.stop_gradient(values[name])
    straight_through = multiplier + leaves[name] - jax.lax.stop_gradient(leaves[name])
    penalty += multiplier * violation
    dual_loss -= straight_through * jax.lax.stop_gradient(violation)
  return LagrangianTerms(penalty, dual_loss)


def _enforced(dual_params: DualParams, constraints: Mapping[str, Constraint]) -> dict[str, jax.Array]:
  missing = sorted(set(constraints) - set(dual_params))
  if missing:
    raise InputError(f"no dual parameters for constraint {missing[0]!r}: they name {', '.join(sorted(dual_params))}")
  for name, constraint in constraints.items():
    if not isinstance(constraint, Constraint):
      raise InputError(f"constraint {name!r} is {constraint!r}: give at_most(value, bound) or at_least(value, bound)")
    for part, number in constraint._asdict().items():
      if jnp.shape(number) != ():
        raise InputError(
          f"constraint {name!r} has a {part} of shape {jnp.shape(number)}: give one number, such as its mean"
        )
  return {name: value for name, value in multipliers(dual_params).items() if name in constraints}


def step_divisor(dual_params: DualParams, constraints: Mapping[str, Constraint]) -> jax.Array:
  """1 + the sum of the enforced multipliers, detached: a divisor of the policy's loss that bounds its step."""
  return 1.0 + sum(jax.lax.stop_gradient(value) for value in _enforced(dual_params, constraints).values())


def dual_metrics(dual_params: DualParams, constraints: Mapping[str, Constraint]) -> dict[str, jax.Array]:
  """Metrics `dual/<name>/{multiplier,value,bound,violation}` of the enforced constraints.

  Value and bound have the user's sign: those of `at_least` are negated back. The violation is positive if the
  constraint is violated, for floors and budgets.
  """
  metrics = {}
  for name, multiplier in _enforced(dual_params, constraints).items():
    constraint = constraints[name]
    sign = -1 if isinstance(constraint, AtLeast) else 1
    metrics[f"dual/{name}/multiplier"] = multiplier
    metrics[f"dual/{name}/value"] = sign * jnp.asarray(constraint.value)
    metrics[f"dual/{name}/bound"] = sign * jnp.asarray(constraint.bound)
    metrics[f"dual/{name}/violation"] = jnp.asarray(constraint.violation)
  return metrics


def dual_step(
  dual_params: DualParams,
  dual_state: optax.OptState,
  constraints: Mapping[str, Constraint],
  controller: optax.GradientTransformation,
) -> tuple[DualParams, optax.OptState, dict[str, jax.Array]]:
  """One update of the multipliers on measured constraints, complete for a training loop.

      leaf_{t+1} = leaf_t + controller(-violation_t)

  A constraint that is absent or not finite is held: its multiplier and its part of the controller's state stay, and
  `skipped` counts it. An expensive constraint may therefore be measured every n-th step.

  Args:
    dual_params: from `init_dual_params`.
    dual_state: `controller.init(dual_params)` at the start, then the state returned by this function.
    constraints: measured constraints by name, scalars averaged over prompts and hosts.
    controller: `pi_controller`, `plain_ascent`, or any optax transformation of the gradient of
      `LagrangianTerms.dual_loss`, chained with `project_multipliers`.

  Returns:
    (new dual parameters, new state, `dual_metrics` before the update).

  Raises:
    InputError: a constraint has no dual parameters, or its value or bound is not a scalar.
  """
  metrics = dual_metrics(dual_params, constraints)
  is_measured = {
    name: jnp.isfinite(constraints[name].violation) if name in constraints else jnp.asarray(False)
    for name in dual_params
  }
  gradient = jax.grad(lambda d: lagrangian_terms(d, constraints).dual_loss)(dual_params)
  gradient = hold_unmeasured(is_measured, gradient, jax.tree.map(jnp.zeros_like, gradient))
  update = optax.with_extra_args_support(controller).update
  updates, new_state = update(gradient, dual_state, dual_params, measured=is_measured)
  new_params = hold_unmeasured(is_measured, optax.apply_updates(dual_params, updates), dual_params)
  return new_params, hold_unmeasured(is_measured, new_state, dual_state), metrics


def resolve_floor(
  spec: float | tuple[str, float], ref_rewards: chex.Array, *, max_reward: float | None = None
) -> float:
  """Quality floor of a specification, in units of the reward; runs on the host.

      0.9                          the value itself
      ("quantile", 0.8)            quantile of the reference policy's rewards
      ("reference_minus", 0.05)    mean of the reference policy's rewards, minus delta

  Args:
    spec: one of the above.
    ref_rewards: rewards of the reference policy's samples, [samples] or [prompts, group].
    max_reward: largest possible reward; None: the mean over prompts of the best sample's reward.

  Returns:
    The floor, a Python float.

  Raises:
    InputError: the specification is unknown, or the floor is out of reach; the message has the numbers.
  """
  rewards = np.asarray(ref_rewards, np.float64)
  if rewards.size == 0 or not np.isfinite(rewards).all():
    raise InputError(f"the reference's rewards must be finite, and at least one; got {rewards.size}")
  floor = _floor_value(spec, rewards)
  if max_reward is not None and rewards.max() > max_reward + 1e-6 * abs(max_reward):
    raise InputError(f"a sample has reward {rewards.max():g}, above the largest possible, given as {max_reward:g}")
  best = float(rewards.max(axis=-1).mean()) if max_reward is None else float(max_reward)
  if not floor <= best + 1e-9 * max(1.0, abs(best)):
    raise InputError(
      f"quality floor {floor:.6g} is out of reach: the reference's rewards have mean {rewards.mean():.6g} and the "
      f"best samples reach {best:.6g}"
      + f" ({rewards.size} samples: give the largest possible reward if there are rarer, better ones)"
      * (max_reward is None)
      + f"; choose a floor of at most {best:.6g}"
    )
  return floor


def _floor_value(spec: float | tuple[str, float], rewards: np.ndarray) -> float:
  if isinstance(spec, (int, float)):
    return float(spec)
  if isinstance(spec, (tuple, list)) and len(spec) == 2:
    kind, amount = spec
    if kind == "quantile" and 0 <= amount <= 1:
      return float(np.quantile(rewards, amount))
    if kind == "reference_minus":
      return float(rewards.mean() - amount)
  raise InputError(
    f'quality floor {spec!r} is not understood: give a number, ("quantile", q) with q in [0, 1], '
    'or ("reference_minus", delta)'
  )
