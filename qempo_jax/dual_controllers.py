"""Controllers of the multipliers, as optax gradient transformations on the gradient of the dual loss.

That gradient is minus the violation of each constraint under every parametrisation (`duals.lagrangian_terms`).
"""

from collections.abc import Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qempo_jax.dual_parametrisation import DualParams
from qempo_jax.dual_parametrisation import for_name
from qempo_jax.dual_parametrisation import items
from qempo_jax.dual_parametrisation import leaf_bounds
from qempo_jax.errors import InputError


class PIControllerState(NamedTuple):
  """State of `pi_controller`; the trees have the structure of the dual parameters.

  Attributes:
    count: updates so far, int32.
    integral: integral part of each controller, in units of the stored leaf.
    average: exponential moving average of the violations, not yet corrected for its start at 0.
    measured: finite measurements seen, int32.
    skipped: measurements skipped because they were not finite, int32.
  """

  count: jax.Array
  integral: DualParams
  average: DualParams
  measured: DualParams
  skipped: DualParams


def pi_controller(
  *,
  proportional_gain: float | Mapping[str, float],
  integral_gain: float | Mapping[str, float],
  smoothing: float = 0.0,
  delay: int = 0,
  cap: float = math.inf,
  floor: float = 1e-6,
) -> optax.GradientTransformation:
  """Returns a proportional-integral controller of the multipliers, as an optax gradient transformation.

      e_t = value_t - bound_t
      I_t = clip(I_{t-1} + k_i e_t)             held while the output is beyond the cap and e_t > 0 (anti-windup)
      leaf_t = clip(I_t + k_p EMA(e)_t)

  Only the proportional part is smoothed: the integral is a low-pass filter already, and smoothing it would add lag.
  This is the positional form; the velocity form (adding k_p times the change of the error to the multiplier) is
  equal until the projection acts, and then turns noise into a drift upwards, since what it clips it never takes
  back (`experiments/studies/dual_controllers.py`). The projection is the last transform of the chain: a multiplier
  that reaches 0 keeps its gradient, and comes back. Gains act on the stored leaf, on the log of a `log_multiplier`
  for example. The controller owns the multipliers: initialise its state again after overwriting them by hand.

  Source: "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods" (Stooke et al., arXiv 2007.03964).

  Args:
    proportional_gain: k_p, once for all constraints or by name; 0 is plain dual ascent.
    integral_gain: k_i, likewise, per update.
    smoothing: decay of the proportional part's moving average in [0, 1), corrected for its start; 0 is no smoothing.
    delay: number of first updates that change nothing (they do feed the moving average).
    cap: largest multiplier.
    floor: smallest multiplier of a log or softplus leaf, which cannot reach 0; a linear one is projected at 0.

  Returns:
    A transformation of the gradient of `LagrangianTerms.dual_loss`; its `update` needs the dual parameters. A
    measurement that is not finite leaves its multiplier and controller as they are, and is counted.
  """
  if not 0 <= smoothing < 1:
    raise InputError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
  if not 0 < floor < cap:
    raise InputError(f"cap is {cap} and floor {floor}: they must satisfy 0 < floor < cap")

  def init(dual_params):
    counts = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), dual_params)
    return PIControllerState(
      count=jnp.zeros((), jnp.int32),
      integral=jax.tree.map(jnp.asarray, dual_params),
      average=jax.tree.map(jnp.zeros_like, dual_params),
      measured=counts,
      skipped=counts,
    )

  def update(gradients, state, dual_params=None):
    if dual_params is None:
      raise ValueError(
        "pi_controller.update needs the dual parameters: update(gradients, state, dual_params)"
      )
    outputs = {}
    for name, leaf, value in items(dual_params):
      k_p, k_i = for_name(proportional_gain, name), for_name(integral_gain, name)
      integral, average, measured, skipped = (tree[name][leaf] for tree in state[1:])
      violation = -gradients[name][leaf]
      finite = jnp.isfinite(violation)
      measured, skipped = measured + finite, skipped + ~finite
      average = jnp.where(finite, smoothing * average + (1 - smoothing) * violation, average)
      proportional = k_p * average / jnp.maximum(1 - smoothing**measured, 1 - smoothing)
      acts = finite & (state.count >= delay)
      low, high = leaf_bounds(leaf, floor=floor, cap=cap)
      wound_up = (integral + proportional >= high) & (violation > 0)
      integral = jnp.where(
        acts & ~wound_up, jnp.clip(integral + k_i * violation, low, high), integral
      )
      change = jnp.where(acts, integral + proportional - value, 0.0)
      outputs[name] = {leaf: (change, integral, average, measured, skipped)}
    updates, *trees = jax.tree.transpose(
      jax.tree.structure(dual_params), jax.tree.structure((0,) * 5), outputs
    )
    return updates, PIControllerState(state.count + 1, *trees)

  return optax.chain(
    optax.GradientTransformation(init, update), project_multipliers(cap=cap, floor=floor)
  )


def project_multipliers(
  *, cap: float = math.inf, floor: float = 1e-6
) -> optax.GradientTransformation:
  """Returns the transformation that keeps updated multipliers in [0, cap]; the last of any chain of dual updates.

      update = clip(leaf + update) - leaf

  Args:
    cap: largest multiplier.
    floor: smallest multiplier of a log or softplus leaf.
  """

  def project(updates, dual_params):
    return {
      name: {
        leaf: jnp.clip(value + updates[name][leaf], *leaf_bounds(leaf, floor=floor, cap=cap))
        - value
      }
      for name, leaf, value in items(dual_params)
    }

  return optax.stateless(project)


def plain_ascent(
  learning_rate: float | Mapping[str, float], **settings
) -> optax.GradientTransformation:
  """Returns projected dual ascent, m <- max(0, m + learning_rate * violation): the controller without its P part."""
  return pi_controller(proportional_gain=0.0, integral_gain=learning_rate, **settings)


def augmented_lagrangian(
  penalty: float | Mapping[str, float], **settings
) -> optax.GradientTransformation:
  """Returns the multiplier rule of the augmented Lagrangian of this penalty c: the controller with k_p = k_i = c.

  Source: Hestenes (1969) and Powell (1969); the correspondence as in Stooke et al. (arXiv 2007.03964).
  """
  return pi_controller(proportional_gain=penalty, integral_gain=penalty, **settings)
