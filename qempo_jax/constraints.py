r"""Constraints as data: one object for the step, the measurement, the best checkpoint, forecasts, alarms and reports.

A constraint bounds the mean over the policy's responses of

    v(y) = value(group) + log_prob * log pi(y)

from below (sense +1, a floor) or from above (sense -1, a budget). With a multiplier m_i for each constraint and the
weight h of the entropy, the Lagrangian's detached reward of a response is

    s(y) = [ sum_i sense_i m_i v_i(y) - h log pi(y) ] / (h + sum_i m_i)

`methods.group_loss` climbs it, `measure` gives the means, `shortfall` how far each is from its bound:

    constraints = {"quality": reward_floor("reward", 0.8), "kl": kl_budget(5.0), "length": length_budget(40.0)}

A constraint without a bound (None) is not enforced: its multiplier is a fixed price.

Source: Lagrangian duality; the programs of arXiv 2602.15894 (reconstruction).
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax import duals
from qempo_jax import importance
from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked
from qempo_jax.masking import masked_mean

FLOOR, BUDGET = 1, -1


@struct.dataclass
class Group:
  """The responses to one prompt, with all that constraints and methods read of them; or many prompts on a leading axis.

  Attributes:
    rewards: [G] by name, each in its own unit; NaN where a response was not scored.
    ref_log_probs: [G] log-probs of whole responses under the reference policy, nats.
    mask: [G, T] True on response tokens, the ending token included.
    fresh: [G] on-policy mask: True on samples of the current policy.
    replayed: [G] True on responses found earlier. A slot where both masks are False is padding.
    weight: [G] importance weight of a fresh response, 1 where the current policy drew it.
    features: arrays by name that a method asks for, such as "similarities" [G, G].
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
    value: group -> [G], the part of the value that does not hold log pi; NaN where a response has none.
    bound: in the value's unit; None fixes the multiplier and enforces nothing.
    sense: +1 for a floor, -1 for a budget.
    log_prob: how often log pi(y) is contained in the value besides: 1 for KL, -1 for entropy.
    unit: of value and bound, for display.
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
  """KL(pi || pi_ref) <= bound, nats a response."""
  return Constraint(lambda group: -group.ref_log_probs, bound, BUDGET, log_prob=1.0, unit="nats")


def entropy_floor(bound: chex.Numeric | None) -> Constraint:
  """H(pi) >= bound, nats a response: holds entropy at a target where the reward is what is maximised."""
  zeros = lambda group: jnp.zeros_like(group.ref_log_probs)
  return Constraint(zeros, bound, FLOOR, log_prob=-1.0, unit="nats")


def length_budget(bound: chex.Numeric | None) -> Constraint:
  """E[length] <= bound, tokens with the ending token."""
  return Constraint(lambda group: jnp.sum(at_least_float32(group.mask), axis=-1), bound, BUDGET, unit="tokens")


def coherence_budget(bound: chex.Numeric | None, threshold: chex.Numeric, *, reward: str = "reward") -> Constraint:
  """E[1{r < threshold} (-log q)] <= bound, nats: unacceptable text must be text that the reference would write.

  Args:
    bound: C, nats; None for a fixed multiplier nu (1 is the program of `exact.solve_qempo_coherent`).
    threshold: least reward of an acceptable response.
    reward: name of the reward that decides.
  """

  def value(group):
    rewards = group.rewards[reward]
    return jnp.where(rewards < threshold, -group.ref_log_probs, jnp.where(jnp.isnan(rewards), jnp.nan, 0.0))

  return Constraint(value, bound, BUDGET, unit="nats")


def values(constraint: Constraint, group: Group, log_probs: jax.Array) -> jax.Array:
  """v(y) of every response, [G]; NaN where it has none."""
  return at_least_float32(constraint.value(group)) + constraint.log_prob * log_probs


def fill_unscored(x: jax.Array, mask: jax.Array) -> jax.Array:
  """[G] with each NaN replaced by the mean over the mask's members that have a value, which gives no credit and no blame.

  Args:
    x: [G] values of one group, NaN where a response has none.
    mask: [G] members whose mean stands in; 0 where none of them has a value. An infinite value stays, and breaks the loss.

  Returns:
    [G], at least float32.
  """
  x, found = at_least_float32(x), ~jnp.isnan(x)
  return jnp.where(found, x, masked_mean(x, found & jnp.asarray(mask).astype(bool)))


def measure(constraints: Mapping[str, Constraint], groups: Group, log_probs: jax.Array) -> dict[str, jax.Array]:
  """The mean of each constraint's value over on-policy responses that have one.

      mean = sum_k w_k v(y_k) / sum_k w_k

  Args:
    constraints: by name.
    groups: groups of P prompts on a leading axis, or one group.
    log_probs: [P, G] or [G] log-probs of whole responses under the current policy, nats.

  Returns:
    Scalars by name, each in its constraint's unit; NaN where no response has a value, which controllers skip.
  """
  found = {}
  for name, constraint in constraints.items():
    one = lambda group, lp, constraint=constraint: values(constraint, group, lp)
    x = (one if jnp.ndim(groups.fresh) == 1 else jax.vmap(one))(groups, log_probs)
    counted = jnp.asarray(groups.fresh).astype(bool) & jnp.isfinite(x)
    mean = importance.mean(masked(x, counted), at_least_float32(groups.weight), counted)
    found[name] = jnp.where(jnp.any(counted), mean, jnp.nan)
  return found


def enforced(constraints: Mapping[str, Constraint], measured: Mapping[str, Any]) -> dict[str, duals.Constraint]:
  """The measured constraints that have a bound, as `duals.dual_step` takes them."""
  bounded = {name: c for name, c in constraints.items() if c.bound is not None}
  side = {FLOOR: duals.at_least, BUDGET: duals.at_most}
  return {name: side[c.sense](measured[name], c.bound) for name, c in bounded.items()}


def shortfall(constraints: Mapping[str, Constraint], measured: Mapping[str, Any]) -> dict[str, Any]:
  """How far each measured value is from its bound: positive where the constraint is violated, in its own unit."""
  return {name: constraint.violation for name, constraint in enforced(constraints, measured).items()}
