"""Several rewards under floors of their own: each floor is a named constraint, its multiplier that reward's weight.

The program is

    max E[-(h + mu) log pi + mu log q]   subject to   E[r] >= R,   E[s_i] >= S_i  for i = 1..n

Its Lagrangian is that of one reward, with the sum of the multipliers for lambda and their average for the reward:

    L = lambda + sum_i nu_i          r' = (lambda r + sum_i nu_i s_i) / L

so that `advantages.lagrangian_rewards(r', ..., quality_multiplier=L)` climbs it, divided by h + L + mu as ever. A
response that reward i could not score (NaN) gets the mean of its group's scored ones there: no credit, no blame, and
never 0. In the measured value it does not count.

Source: Lagrangian duality; multipliers as the weights of several rewards as in "Confronting Reward Model
Overoptimization with Constrained RLHF" (Moskovitz et al., arXiv 2310.04373).
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qempo_jax import duals
from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked


class Combined(NamedTuple):
  """What takes the place of one reward and its multiplier.

  Attributes:
    rewards: [group] the average of the rewards, weighted by their multipliers.
    multiplier: scalar, the multipliers' sum; nats per unit of reward.
  """

  rewards: jax.Array
  multiplier: jax.Array


def combine(
  rewards: chex.Array,
  floor_rewards: chex.Array,
  mask: chex.Array,
  *,
  quality_multiplier: chex.Numeric,
  floor_multipliers: chex.Array,
) -> Combined:
  """The one reward and multiplier that stand for several, for one group.

  Args:
    rewards: [group] r, in any unit.
    floor_rewards: [group, n] the rewards s_i with floors, each in its own unit; NaN where not scored.
    mask: [group] true on the members whose mean stands for what was not scored.
    quality_multiplier: lambda >= 0, nats per unit of r.
    floor_multipliers: [n] nu_i >= 0, nats per unit of s_i.

  Returns:
    Combined; rewards 0 where every multiplier is 0.

  Raises:
    AssertionError: shapes do not fit.
  """
  chex.assert_rank([rewards, floor_rewards, mask, floor_multipliers], [1, 2, 1, 1])
  chex.assert_equal_shape([rewards, mask])
  chex.assert_shape(floor_rewards, (rewards.shape[0], floor_multipliers.shape[0]))
  filled = fill_unscored(floor_rewards, mask)
  total = quality_multiplier + jnp.sum(floor_multipliers)
  weighted = quality_multiplier * at_least_float32(rewards) + filled @ floor_multipliers
  return Combined(jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0), total)


def fill_unscored(rewards: chex.Array, mask: chex.Array) -> jax.Array:
  """[group, n] with each NaN replaced by its column's mean over scored members in the mask; 0 where there are none.

  A column without any scored member is the same for the whole group, so it moves no advantage.
  """
  rewards = at_least_float32(rewards)
  scored = jnp.isfinite(rewards)
  counted = scored & jnp.asarray(mask).astype(bool)[:, None]
  mean = jnp.sum(masked(rewards, counted), axis=0) / jnp.maximum(jnp.sum(counted, axis=0), 1)
  return jnp.where(scored, rewards, mean)


def measure(floor_rewards: chex.Array, fresh: chex.Array, weight: chex.Array | None = None) -> jax.Array:
  """The mean of each reward over the fresh samples that it scored.

  Args:
    floor_rewards: [..., n] NaN where not scored.
    fresh: [...] true on samples of the current policy, or the last.
    weight: [...] of samples that the last policy drew, see `importance.weights`; None for 1 each.

  Returns:
    [n]; NaN where nothing was scored, which the controllers of `dual_controllers` skip and count.
  """
  chex.assert_equal_shape_prefix([floor_rewards, fresh], jnp.ndim(fresh))
  counted = jnp.isfinite(floor_rewards) & jnp.asarray(fresh).astype(bool)[..., None]
  axes = tuple(range(jnp.ndim(fresh)))
  weight = jnp.ones(jnp.shape(fresh)) if weight is None else at_least_float32(weight)
  share = masked(jnp.broadcast_to(weight[..., None], jnp.shape(floor_rewards)), counted)
  count = jnp.sum(share, axis=axes)
  total = jnp.sum(share * masked(at_least_float32(floor_rewards), counted), axis=axes)
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), jnp.nan)


def constraints(values: chex.Array, floors: Mapping[str, float]) -> dict[str, duals.Constraint]:
  """The named constraints value_i >= floor_i, for `duals.lagrangian_terms`.

  Args:
    values: [n] from `measure`, in the order of the floors.
    floors: floor of each reward by name, in that reward's unit.

  Returns:
    One constraint a floor.
  """
  chex.assert_shape(values, (len(floors),))
  return {
    name: duals.at_least(value, floor) for value, (name, floor) in zip(values, floors.items())
  }
