"""Controllers of the multipliers, as optax gradient transformations on the gradient of the dual loss.

That gradient is minus the violation of each constraint under every parametrisation (`duals.lagrangian_terms`).
"""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
import optax

from qempo_jax.dual_parametrisation import for_name
from qempo_jax.dual_parametrisation import is_concrete
from qempo_jax.dual_parametrisation import leaf_bounds
from qempo_jax.dual_parametrisation import names_of
from qempo_jax.dual_parametrisation import scalar
from qempo_jax.dual_state import PIControllerState
from qempo_jax.errors import InputError

Number = float | jax.Array


def pi_controller(
  *,
  proportional_gain: Number | Mapping[str, Number],
  integral_gain: Number | Mapping[str, Number],
  smoothing: Number = 0.0,
  delay: Number = 0,
  cap: Number = math.inf,
  floor: Number = 1e-6,
) -> optax.GradientTransformationExtraArgs:
  """Proportional-integral controller of the multipliers, as an optax gradient transformation.

      e_t = value_t - bound_t
      I_t = clip(I_{t-1} + k_i e_t)             held while the output is beyond the cap and e_t > 0 (anti-windup)
      leaf_t = clip(I_t + k_p EMA(e)_t)

  Only the proportional part is smoothed: the integral is already a low-pass filter, and smoothing it would add lag.
  This is the positional form. The velocity form, which adds k_p times the change of the error to the multiplier, is
  equal until the projection acts. It then drifts upwards under noise, since clipped decreases are lost
  (`experiments/studies/dual_controllers.py`). The projection is the last transform of the chain: a multiplier
  at 0 keeps its gradient and can recover. Gains act on the stored leaf, for example on a `log_multiplier`.
  After overwriting multipliers by hand, initialise the controller's state again.

  A setting may be traced, as in a sweep under `jax.vmap` or in `optax.inject_hyperparams`; it is then not checked.

  Source: "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods" (Stooke et al., arXiv 2007.03964).

  Args:
    proportional_gain: k_p, for all constraints or by name; 0 is plain dual ascent.
    integral_gain: k_i, for all constraints or by name, per update.
    smoothing: decay in [0, 1) of the proportional part's moving average, bias-corrected; 0: no smoothing. The average
      delays that part: with a large k_p and a decay of 0.9 the multipliers may swing for ever.
    delay: initial updates without a change of multipliers; the moving average already runs.
    cap: largest multiplier.
    floor: smallest multiplier of a log or softplus leaf, which cannot reach 0; a linear one is projected at 0.

  Returns:
    A transformation of the gradient of `LagrangianTerms.dual_loss`. Its `update` needs the dual parameters, and takes
    `measured`, a boolean by name (`duals.dual_step` passes it). A constraint without a measurement or with a
    non-finite gradient is held with its part of the state, and counted in `skipped`. No two leaves of the state share
    an array, nor one with the dual parameters, so that both can be donated. It works within `optax.multi_transform`
    and `optax.masked`; the latter passes other gradients through.

  Raises:
    InputError: a concrete setting is out of range or not a single number.
  """
  smoothing, delay = scalar(smoothing, "smoothing"), scalar(delay, "delay")
  cap, floor = scalar(cap, "cap"), scalar(floor, "floor")
  if is_concrete(smoothing) and not 0 <= smoothing < 1:
    raise InputError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
  if is_concrete(floor) and not floor > 0 or is_concrete(floor) and is_concrete(cap) and not floor < cap:
    raise InputError(f"cap is {cap} and floor {floor}: they must satisfy 0 < floor < cap")

  def init(dual_params):
    counts = lambda: jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.int32), dual_params)
    return PIControllerState(
      count=jnp.zeros((), jnp.int32),
      integral=jax.tree.map(jnp.copy, dual_params),
      average=jax.tree.map(jnp.zeros_like, dual_params),
      measured=counts(),
      skipped=counts(),
    )

  def update(gradients, state, dual_params=None, *, measured=None, **_):
    if dual_params is None:
      raise ValueError("pi_controller.update needs the dual parameters: update(gradients, state, dual_params)")

    def one(path, value, gradient, *parts):
      name, leaf = names_of(path)
      k_p = scalar(for_name(proportional_gain, name), f"proportional_gain of {name!r}")
      k_i = scalar(for_name(integral_gain, name), f"integral_gain of {name!r}")
      integral, average, num_measured, num_skipped = parts
      violation = -gradient
      finite = jnp.isfinite(violation) & (True if measured is None else measured[name])
      num_measured, num_skipped = num_measured + finite, num_skipped + ~finite
      average = jnp.where(finite, smoothing * average + (1 - smoothing) * violation, average)
      proportional = k_p * average / jnp.maximum(1 - smoothing**num_measured, 1 - smoothing)
      acts = finite & (state.count >= delay)
      low, high = leaf_bounds(leaf, floor=floor, cap=cap)
      wound_up = (integral + proportional >= high) & (violation > 0)
      integral = jnp.where(acts & ~wound_up, jnp.clip(integral + k_i * violation, low, high), integral)
      change = jnp.where(acts, integral + proportional - value, 0.0)
      new = (change, integral, average, num_measured, num_skipped)
      return tuple(x.astype(old.dtype) for x, old in zip(new, (value, *parts), strict=True))

    each = jax.tree_util.tree_map_with_path(one, dual_params, gradients, *state[1:])
    updates, *trees = jax.tree.transpose(jax.tree.structure(dual_params), jax.tree.structure((0,) * 5), each)
    return updates, PIControllerState(state.count + 1, *trees)

  return optax.chain(optax.GradientTransformationExtraArgs(init, update), project_multipliers(cap=cap, floor=floor))


def project_multipliers(*, cap: Number = math.inf, floor: Number = 1e-6) -> optax.GradientTransformation:
  """Transformation that keeps updated multipliers in [0, cap]; the last of any chain of dual updates.

      update = clip(leaf + update) - leaf

  Args:
    cap: largest multiplier.
    floor: smallest multiplier of a log or softplus leaf.
  """
  cap, floor = scalar(cap, "cap"), scalar(floor, "floor")

  def project(updates, dual_params):
    def one(path, update, value):
      leaf = names_of(path)[1]
      return (jnp.clip(value + update, *leaf_bounds(leaf, floor=floor, cap=cap)) - value).astype(value.dtype)

    return jax.tree_util.tree_map_with_path(one, updates, dual_params)

  return optax.stateless(project)


def plain_ascent(
  learning_rate: Number | Mapping[str, Number],
  *,
  smoothing: Number = 0.0,
  delay: Number = 0,
  cap: Number = math.inf,
  floor: Number = 1e-6,
) -> optax.GradientTransformationExtraArgs:
  """Projected dual ascent, m <- max(0, m + learning_rate * violation): `pi_controller` without a proportional part."""
  return pi_controller(
    proportional_gain=0.0, integral_gain=learning_rate, smoothing=smoothing, delay=delay, cap=cap, floor=floor
  )
