"""Constraints as data: one object serves the step, measurements, the best checkpoint, forecasts, alarms and reports.

A constraint bounds the mean over the policy's responses of

    v(y) = value(group) + log_prob * log pi(y)

from below (sense +1, a floor) or from above (sense -1, a budget). With multipliers m_i and entropy weight h, the
detached reward of a response in the Lagrangian is

    s(y) = [ sum_i sense_i m_i v_i(y) - h log pi(y) ] / (h + sum_i m_i)

`methods.group_loss` maximises it, `measure` estimates the means, and `shortfall` is each mean's distance from its
bound:

    constraints = {"quality": reward_floor("reward", 0.8), "kl": kl_budget(5.0), "length": length_budget(40.0)}

A constraint without a bound (None) is not enforced: its multiplier is a fixed price.

Source: Lagrangian duality; the programs of arXiv 2602.15894 (reconstruction).
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax import duals
from qempo_jax import importance
from qempo_jax.coherent import gate
from qempo_jax.errors import InputError
from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked
from qempo_jax.masking import masked_mean

FLOOR, BUDGET = 1, -1


@struct.dataclass
class Group:
  """Responses to one prompt, with the arrays that constraints and methods read; or several prompts on a leading axis.

  Attributes:
    rewards: [G] by name, each in its own unit; NaN for an unscored response.
    ref_log_probs: [G] sequence log-probs under the reference policy, nats.
    mask: [G, T] True on response tokens, EOS included.
    fresh: [G] on-policy mask: True on samples of the current policy.
    replayed: [G] True on responses from the replay buffer. Slots where both masks are False are padding.
    weight: [G] importance weight of an on-policy response; 1 if the current policy drew it.
    features: arrays by name that a method needs, such as "similarities" [G, G].
  """

  rewards: dict[str, jax.Array]
  ref_log_probs: jax.Array
  mask: jax.Array
  fresh: jax.Array
  replayed: jax.Array
  weight: jax.Array
  features: dict[str, jax.Array] = struct.field(default_factory=dict)

  @classmethod
  def on_policy(cls, rewards, mask, ref_log_probs=None) -> "Group":
    """A group of samples of the current policy, none replayed; without a reference its log-probs are 0."""
    size = jnp.shape(mask)[:-1]
    ones = jnp.ones(size, bool)
    return cls(rewards, jnp.zeros(size) if ref_log_probs is None else ref_log_probs, mask, ones, ~ones, jnp.ones(size))


@dataclasses.dataclass(frozen=True)
class Constraint:
  """A bound on the mean of one value of the responses.

  Attributes:
    value: group -> [G], the part of the value without log pi; NaN for a response without a value.
    bound: least mean of a floor or largest of a budget, in the value's unit; None: not enforced, with a fixed
      multiplier.
    sense: +1 for a floor, -1 for a budget.
    log_prob: coefficient of log pi(y) in the value: 1 for KL, -1 for entropy.
    unit: unit of value and bound, for display.
  """

  value: Callable[[Any], jax.Array]
  bound: chex.Numeric | None
  sense: int
  log_prob: float = 0.0
  unit: str = ""

  def __post_init__(self):
    """Checks the sense."""
    if self.sense not in (FLOOR, BUDGET):
      raise ValueError(f"a constraint's sense is +1 (floor) or -1 (budget), not {self.sense!r}")


def reward_floor(name: str, bound: chex.Numeric | None) -> Constraint:
  """E[r_name] >= bound, in the unit of that reward."""
  return Constraint(lambda group: group.rewards[name], bound, FLOOR, unit="reward")


def kl_budget(bound: chex.Numeric | None) -> Constraint:
  """KL(pi || pi_ref) <= bound, nats a response; InputError for a number below 0."""
  _check_reachable(bound, 0, "a KL budget, in nats,")
  return Constraint(lambda group: -group.ref_log_probs, bound, BUDGET, log_prob=1.0, unit="nats")


def entropy_floor(bound: chex.Numeric | None) -> Constraint:
  """Lower bound H(pi) >= bound on response entropy, nats: with rewards maximised, entropy cannot collapse below it."""
  return Constraint(_nothing, bound, FLOOR, log_prob=-1.0, unit="nats")


def entropy_budget(bound: chex.Numeric | None) -> Constraint:
  """Upper bound H(pi) <= bound on response entropy, nats; with `entropy_floor` at the same bound, an entropy target.

  The two multipliers then act as the one signed multiplier of an equality, m = m_floor - m_budget.

  Raises:
    InputError: a number below 0.
  """
  _check_reachable(bound, 0, "an entropy budget, in nats,")
  return Constraint(_nothing, bound, BUDGET, log_prob=-1.0, unit="nats")


def _check_reachable(bound: chex.Numeric | None, least: float, what: str) -> None:
  """Raises InputError for a number below the least mean that any policy has; arrays are not looked at."""
  if isinstance(bound, (int, float)) and not bound >= least:
    raise InputError(f"{what} must be at least {least}, not {bound:g}: no policy could meet it")


def _nothing(group: Group) -> jax.Array:
  """Zeros: the value is log pi alone."""
  return jnp.zeros_like(group.ref_log_probs)


def length_budget(bound: chex.Numeric | None) -> Constraint:
  """E[length] <= bound, tokens, EOS included; InputError for a number below 1."""
  _check_reachable(bound, 1, "a length budget, in tokens with the ending one,")
  return Constraint(lambda group: jnp.sum(at_least_float32(group.mask), axis=-1), bound, BUDGET, unit="tokens")


def coherence_budget(
  bound: chex.Numeric | None,
  threshold: chex.Numeric | None = None,
  *,
  reward: str = "reward",
  quantile: float | None = None,
  width: float = 0.0,
) -> Constraint:
  """E[1{r < tau} (-log q)] <= bound, nats: unacceptable text must be likely under the reference.

  Args:
    bound: budget C, nats; None: a fixed multiplier nu (1 is the program of `exact.solve_qempo_coherent`).
    threshold: tau, the least reward of an acceptable response; None: `quantile` sets it.
    reward: name of the reward that tau applies to.
    quantile: quantile in (0, 1) of the group's on-policy rewards that is tau; None: `threshold` is tau. A group of
      equal rewards is acceptable as a whole, so only the quality floor tells good from bad then.
    width: width of a soft gate sigmoid((tau - r) / width) in place of 1{r < tau}, reward units; 0: hard threshold.

  Raises:
    InputError: not exactly one of threshold and quantile, a quantile outside (0, 1), a threshold that is NaN, or a
      negative width or budget.
  """
  _check_reachable(bound, 0, "a coherence budget, in nats,")
  if (threshold is None) == (quantile is None):
    raise InputError(
      "the coherence constraint needs either a threshold, in reward units, or a quantile of the group's rewards"
    )
  if quantile is not None and not 0 < quantile < 1:
    raise InputError(
      f"quantile={quantile:g} must lie strictly between 0 and 1; responses at or above that quantile are acceptable"
    )
  if isinstance(threshold, float) and math.isnan(threshold):
    raise InputError("threshold is NaN: give the least reward of an acceptable response")
  if not width >= 0:
    raise InputError(f"width={width:g} of the soft gate must be at least 0; 0 is the hard gate")

  def value(group):
    rewards = group.rewards[reward]
    tau = threshold
    if quantile is not None:
      counted = jnp.where(jnp.asarray(group.fresh).astype(bool), rewards, jnp.nan)
      tau = jnp.nanquantile(counted, quantile, method="lower")
    weight = gate(rewards, threshold=tau, width=width)
    return jnp.where(weight > 0, -weight * group.ref_log_probs, weight)

  return Constraint(value, bound, BUDGET, unit="nats")


def values(constraint: Constraint, group: Group, log_probs: jax.Array) -> jax.Array:
  """v(y) of every response, [G]; NaN for a response without a value."""
  return at_least_float32(constraint.value(group)) + constraint.log_prob * log_probs


def fill_unscored(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Replaces each NaN by the mean of the group's scored members under the mask: neither credit nor blame.

  Args:
    x: [G] values of one group, NaN for a response without a value. An infinite value stays and makes the loss
      non-finite.
    mask: [G] members that count in the mean; the mean is 0 if none of them has a value.

  Returns:
    [G], at least float32.
  """
  x, scored = at_least_float32(x), ~jnp.isnan(x)
  return jnp.where(scored, x, masked_mean(x, scored & jnp.asarray(mask).astype(bool)))


def measure(constraints: Mapping[str, Constraint], groups: Group, log_probs: jax.Array) -> dict[str, jax.Array]:
  """Mean of each constraint's value over the scored on-policy responses.

      mean = sum_k w_k v(y_k) / sum_k w_k

  Args:
    constraints: by name.
    groups: groups of P prompts on a leading axis, or one group.
    log_probs: [P, G] or [G] sequence log-probs under the current policy, nats.

  Returns:
    Scalars by name, each in its constraint's unit; NaN if no response has a value, which controllers skip.
  """
  means = {}
  for name, constraint in constraints.items():
    one = lambda group, lp, constraint=constraint: values(constraint, group, lp)
    x = (one if jnp.ndim(groups.fresh) == 1 else jax.vmap(one))(groups, log_probs)
    counted = jnp.asarray(groups.fresh).astype(bool) & jnp.isfinite(x)
    mean = importance.mean(masked(x, counted), at_least_float32(groups.weight), counted)
    means[name] = jnp.where(jnp.any(counted), mean, jnp.nan)
  return means


def enforced(constraints: Mapping[str, Constraint], measured: Mapping[str, Any]) -> dict[str, duals.Constraint]:
  """Measured constraints that have a bound, in the form of `duals.dual_step`."""
  bounded = {name: c for name, c in constraints.items() if c.bound is not None}
  side = {FLOOR: duals.at_least, BUDGET: duals.at_most}
  return {name: side[c.sense](measured[name], c.bound) for name, c in bounded.items()}


def shortfall(constraints: Mapping[str, Constraint], measured: Mapping[str, Any]) -> dict[str, Any]:
  """Violation of each enforced constraint, in its own unit: positive if violated, negative if satisfied."""
  return {name: constraint.violation for name, constraint in enforced(constraints, measured).items()}
