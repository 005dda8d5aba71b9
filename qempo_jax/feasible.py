"""Feasible quality floors and KL budgets on an enumerable response set, and errors for infeasible ones."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import chex
import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from qempo_jax import dual_newton
from qempo_jax.errors import InputError


class InfeasibleError(InputError):
  """No policy meets the constraints; the message states the feasible range."""


class FeasibleRange(NamedTuple):
  """Range of rewards and KLs that policies can reach; scalars, or [P] with one problem a prompt.

  Attributes:
    lowest_reward: smallest expected reward.
    reference_reward: expected reward of the reference policy; a lower floor costs RLHF nothing.
    highest_reward: largest expected reward, reached in the limit of an infinite quality multiplier.
    min_kl: K*(R), nats: the smallest KL to the reference at the floor, that of RLHF.
    qempo_kl: KL of the QEMPO optimum at the floor, nats; a larger budget is slack.
  """

  lowest_reward: jax.Array
  reference_reward: jax.Array
  highest_reward: jax.Array
  min_kl: jax.Array
  qempo_kl: jax.Array

  def kl_budget_at(self, position: chex.Numeric) -> jax.Array:
    """KL budget, nats, at a position between K*(R), at 0, and the QEMPO optimum's KL, at 1."""
    return self.min_kl + position * (self.qempo_kl - self.min_kl)


def feasible_range(
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  min_reward: chex.Numeric | None = None,
  per_prompt: bool = False,
) -> FeasibleRange:
  """Rewards that a policy can reach and, at a floor R, the two KLs between which a budget matters.

      K*(R) = min { KL(pi || q) : E[r] >= R }  <=  K  <=  KL(pi_QEMPO || q)

  At K = K*(R) QEMPO-KL is RLHF, and its multipliers are infinite; from KL(pi_QEMPO || q) on it is QEMPO.

  Args:
    rewards: [Y] or [P, Y] rewards.
    ref_log_probs: normalised log-probs of the reference, nats, same shape; -inf outside the response set.
    min_reward: floor R, scalar, or [P] with `per_prompt`; None: no floor (then K* = 0).
    per_prompt: solve one problem a prompt, rather than one in expectation over prompts.

  Returns:
    A FeasibleRange.

  Raises:
    InfeasibleError: min_reward is above the highest reward.
    InputError: a value is not finite, or the reference is not normalised.
  """
  rewards, ref_log_probs = prepare(rewards, ref_log_probs)
  if min_reward is not None:
    check_floor(rewards, ref_log_probs, min_reward, per_prompt=per_prompt)
  floor = jnp.asarray(-jnp.inf if min_reward is None else min_reward, rewards.dtype)
  return _feasible_range(rewards, ref_log_probs, floor, per_prompt=per_prompt)


@functools.partial(jax.jit, static_argnames="per_prompt")
def _feasible_range(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: jax.Array, *, per_prompt: bool
) -> FeasibleRange:

  def one(rewards: jax.Array, ref_log_probs: jax.Array, min_reward: jax.Array) -> FeasibleRange:
    lowest, highest = dual_newton.reward_interval(rewards, ref_log_probs)
    floor = jnp.maximum(min_reward, lowest)

    def kl_at(tau: jax.Array) -> jax.Array:
      point = dual_newton.point_at_tau(rewards, ref_log_probs, floor, tau)
      log_probs = dual_newton.path_log_probs(rewards, ref_log_probs, point)
      return jnp.mean(dual_newton.kl_divergence(log_probs, ref_log_probs))

    min_kl, qempo_kl = jax.vmap(kl_at)(jnp.array([0, 1], rewards.dtype))
    reference = jnp.mean(dual_newton.expectation(ref_log_probs, rewards))
    return FeasibleRange(lowest, reference, highest, min_kl, qempo_kl)

  return for_each_problem(one, rewards, ref_log_probs, min_reward, per_prompt=per_prompt)


def for_each_problem(
  function: Callable[..., Any], rewards: jax.Array, ref_log_probs: jax.Array, *bounds: chex.Numeric, per_prompt: bool
) -> Any:
  """Calls function on [P, Y] arrays for one global problem, or maps it over [1, Y] problems; [Y] is one problem."""
  limits = [jnp.asarray(bound, rewards.dtype) for bound in bounds]
  if rewards.ndim == 1:
    return function(rewards[None], ref_log_probs[None], *limits)
  if not per_prompt:
    return function(rewards, ref_log_probs, *limits)
  limits = [jnp.broadcast_to(limit, rewards.shape[:1]) for limit in limits]
  return jax.vmap(function)(rewards[:, None], ref_log_probs[:, None], *limits)


def prepare(rewards: chex.Array, ref_log_probs: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Casts both arrays to one floating dtype, with rewards 0 outside the set; checks shapes, and concrete values."""
  dtype = jnp.result_type(rewards, ref_log_probs, jnp.float32)
  rewards, ref_log_probs = jnp.asarray(rewards, dtype), jnp.asarray(ref_log_probs, dtype)
  if rewards.ndim not in (1, 2) or rewards.shape != ref_log_probs.shape:
    raise InputError(
      f"rewards {rewards.shape} and ref_log_probs {ref_log_probs.shape} must have one shape, [responses] or"
      " [prompts, responses]"
    )
  if not traced(rewards, ref_log_probs):
    inside = np.asarray(ref_log_probs) > -np.inf
    if not np.isfinite(np.asarray(rewards)[inside]).all():
      raise InputError("rewards must be finite on every response of the set: score or drop the others first")
    total = np.exp(np.asarray(ref_log_probs, np.float64)).sum(axis=-1)
    if not (np.abs(total - 1) < 1e-3).all():
      worst = total.flat[np.nanargmax(np.abs(total - 1))] if np.isfinite(total).any() else np.nan
      raise InputError(f"ref_log_probs must be normalised, but sum to {worst:.6g}; apply jax.nn.log_softmax to them")
  return jnp.where(ref_log_probs > -jnp.inf, rewards, 0), ref_log_probs


def traced(*values: Any) -> bool:
  """True if any value is a tracer, which has no concrete value to check."""
  return any(isinstance(value, Tracer) for value in values)


def check_floor(rewards: jax.Array, ref_log_probs: jax.Array, min_reward: chex.Numeric, *, per_prompt: bool) -> None:
  """Raises InfeasibleError if no policy's expected reward reaches the floor."""
  if traced(rewards, ref_log_probs, min_reward):
    return
  reach = for_each_problem(dual_newton.reward_interval, rewards, ref_log_probs, per_prompt=per_prompt)
  floor, lowest, highest = np.broadcast_arrays(min_reward, *reach)
  slack = _rounding(rewards) * np.maximum(np.abs(highest), 1e-30)
  where = _first(~(floor <= highest + slack))
  if where is not None:
    raise InfeasibleError(
      f"min_reward {floor[where]:.6g} is out of reach{_prompt(where)}: expected rewards lie in "
      f"[{lowest[where]:.6g}, {highest[where]:.6g}]; choose a floor of at most {highest[where]:.6g}"
    )


def check_budget(
  rewards: jax.Array,
  ref_log_probs: jax.Array,
  min_reward: chex.Numeric,
  max_kl: chex.Numeric,
  *,
  per_prompt: bool,
) -> None:
  """Raises InfeasibleError if no policy that reaches the floor is within the KL budget."""
  if traced(rewards, ref_log_probs, min_reward, max_kl):
    return
  ends = _feasible_range(rewards, ref_log_probs, jnp.asarray(min_reward, rewards.dtype), per_prompt=per_prompt)
  budget, floor, low, high = np.broadcast_arrays(max_kl, min_reward, ends.min_kl, ends.qempo_kl)
  where = _first(~(budget >= low - _rounding(rewards) * (1 + low)))
  if where is not None:
    raise InfeasibleError(
      f"max_kl {budget[where]:.6g} is below {low[where]:.6g} nats, the smallest KL of any policy with expected "
      f"reward {floor[where]:.6g} or more{_prompt(where)}; choose it between {low[where]:.6g} (RLHF) and "
      f"{high[where]:.6g} (QEMPO, from where it is slack)"
    )


def check_position(kl_position: chex.Numeric) -> None:
  """Raises InputError for a position outside [0, 1]."""
  if not traced(kl_position) and not np.all((np.asarray(kl_position) >= 0) & (np.asarray(kl_position) <= 1)):
    raise InputError(f"kl_position is {kl_position}: it must lie between 0 (RLHF) and 1 (QEMPO)")


def _rounding(array: jax.Array) -> float:
  """Relative tolerance of rounding: 2e-12 in float64, 6e-6 in float32."""
  return float(jnp.finfo(array.dtype).eps) ** 0.75


def _first(failing: np.ndarray) -> tuple[int, ...] | None:
  """Index of the first True."""
  return tuple(int(axis[0]) for axis in np.nonzero(np.atleast_1d(failing)))[: failing.ndim] if failing.any() else None


def _prompt(where: tuple[int, ...]) -> str:
  return f" for prompt {where[0]}" if where else ""
