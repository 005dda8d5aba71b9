"""The online step: one pure function from (state, scored groups) to (state, metrics).

It updates policy and multipliers. The policy maximises the Lagrangian of `methods.group_loss`. The multiplier of each
constraint with a bound follows its controller, on the value measured on this step's on-policy samples.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from qempo_jax import constraints as constraint_lib
from qempo_jax import duals
from qempo_jax import importance
from qempo_jax import scoring
from qempo_jax.constraints import Constraint
from qempo_jax.constraints import Group
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.masking import masked
from qempo_jax.masking import masked_mean
from qempo_jax.methods.group_loss import group_loss
from qempo_jax.methods.method import Method
from qempo_jax.methods.method import Prices
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import accumulation
from qempo_jax.train.state import TrainState
from qempo_jax.train.state import keep_if_skipped
from qempo_jax.train.state import whole_policy
from qempo_jax.train.step import dual_step
from qempo_jax.train.step import policy_step
from qempo_jax.types import PackedGroups


@struct.dataclass
class GroupBatch:
  """Groups of responses with their rewards.

  Attributes:
    packed: prompts and responses.
    mask: [P, G, T] True on response tokens, EOS included.
    rewards: [P, G] by name, each in its own unit; "reward" is the main one. NaN for an unscored response.
    fresh: [P, G] on-policy mask: True on samples of the current policy (with stale_steps=1: drawn one update earlier).
    replayed: [P, G] True on responses from the replay buffer. Slots where both masks are False are padding.
    features: [P, ...] arrays by name that the method needs.
    unscored: [P, G] True on samples of the current policy that could not be judged; they are not fresh. None: none.
    behaviour_log_probs: [P, G] sequence log-probs of on-policy responses under their behaviour policy, nats; None: the
      current policy drew them.
  """

  packed: PackedGroups | None
  mask: jax.Array
  rewards: dict[str, jax.Array]
  fresh: jax.Array
  replayed: jax.Array
  features: dict[str, jax.Array] = struct.field(default_factory=dict)
  behaviour_log_probs: jax.Array | None = None
  unscored: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class OnlineObjective:
  """Objective of the online step.

  Attributes:
    method: see `methods`.
    constraints: by name; each has a multiplier, which is learned if the constraint has a bound.
    replay_weight: weight of a replayed response in trajectory balance; an on-policy one has 1.
    averaging: decay of the moving averages of measured values.
    max_importance: upper clip of the importance weight pi(y) / pi_behaviour(y).
    router_weight: weight of a mixture's load-balancing loss, see `models.experts`.
  """

  method: Method
  constraints: Mapping[str, Constraint]
  replay_weight: float
  averaging: float
  max_importance: float = float("inf")
  router_weight: float = 0.0


class Optimizers(NamedTuple):
  """The two optimizers of a run."""

  policy: optax.GradientTransformation
  dual: optax.GradientTransformation


def online_step(
  state: TrainState,
  ref_params,
  batch: GroupBatch,
  *,
  config: ModelConfig,
  objective: OnlineObjective,
  optimizers: Optimizers,
  temperature: float,
  chunk_size: int,
  as_policy: Callable = whole_policy,
  micro_batches: int = 1,
  transform: LogitTransform = PLAIN,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the policy and of the multipliers; both are kept if the loss or its gradient is not finite.

  Args:
    state: the train state.
    ref_params: the reference policy.
    batch: groups of on-policy samples, with replayed responses.
    config: the decoder's config.
    objective: method and constraints.
    optimizers: the policy's and the multipliers'.
    temperature: the sampling temperature.
    chunk_size: tokens whose logits are in memory at once.
    as_policy: (state.params, ref_params) -> the policy's parameters; it merges adapters with the reference.
    micro_batches: parts of the batch whose gradients are summed, one part in memory at a time; they divide P.
    transform: the sampler's. The reference is scored without its truncation, so that the KL is finite.

  Returns:
    (the next state, metrics: scalars by name; entropies and KL in nats a sequence, lengths in tokens).
  """
  _, group_size, max_length = batch.mask.shape
  settings = {"group_size": group_size, "max_length": max_length, "temperature": temperature, "chunk_size": chunk_size}
  score = functools.partial(scoring.score_groups, config=config, **settings)
  of_reference = transform.untruncated()
  reference = lambda packed: jnp.sum(score(ref_params, packed=packed, transform=of_reference).log_prob, axis=-1)
  ref_log_probs = accumulation.map_rows(reference, batch.packed, micro_batches=micro_batches)
  return policy_and_duals(
    state,
    batch,
    ref_log_probs,
    score=lambda params, groups: score(as_policy(params, ref_params), packed=groups.packed, transform=transform),
    objective=objective,
    optimizers=optimizers,
    micro_batches=micro_batches,
  )


def policy_and_duals(
  state: TrainState,
  batch: GroupBatch,
  ref_log_probs: jax.Array,
  *,
  score: Callable,
  objective: OnlineObjective,
  optimizers: Optimizers,
  micro_batches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`online_step` for any policy: `score` maps (state.params, groups) to TokenStats [P, G, T] of the responses."""
  prompts = batch.mask.shape[0]
  measured_on = with_unscored(batch)
  # A floor is enforced on what it is measured on; the main reward's unscored samples are not fresh, and move no policy.
  batch = batch.replace(rewards=measured_on.rewards | {"reward": batch.rewards["reward"]})
  prices = Prices(objective.method.entropy_weight, duals.multipliers(state.dual_params))

  def loss(stats, rows):
    groups = as_groups(rows[0], stats, rows[1], objective.max_importance)
    one = lambda stats, group: group_loss(
      stats, group, prices, objective.constraints, objective.method, replay_weight=objective.replay_weight
    )
    losses = jax.vmap(one)(stats, groups)
    return (losses if stats.router_loss is None else losses + objective.router_weight * stats.router_loss) / prompts

  updated, stats, metrics = policy_step(
    state,
    (batch, ref_log_probs),
    score=lambda params, rows: score(params, rows[0]),
    loss=loss,
    optimizer=optimizers.policy,
    micro_batches=micro_batches,
  )
  groups = as_groups(measured_on, stats, ref_log_probs, objective.max_importance)
  measured, values = measure(stats, groups, objective.constraints)
  if stats.router_loss is not None:
    measured["router_loss"] = jnp.mean(stats.router_loss)
  if batch.behaviour_log_probs is not None:
    measured |= importance_metrics(stats, batch, objective.max_importance)
  next_state, dual_metrics = dual_step(
    updated,
    measured | values,
    constraints=objective.constraints,
    controller=optimizers.dual,
    averaging=objective.averaging,
  )
  return keep_if_skipped(metrics["skipped"], next_state, updated), measured | dual_metrics | metrics


def with_unscored(batch: GroupBatch) -> GroupBatch:
  """The batch with unjudged samples among the fresh ones, at the least reward, as constraints are measured on it.

  The least of 0 and the judged rewards: what cannot be judged never raises a mean. A further reward that scored none of
  a group does not apply to that prompt and stays NaN there; with nothing judged at all NaN stays too.
  """
  if batch.unscored is None:
    return batch
  fresh = batch.fresh | batch.unscored

  def filled(name, rewards):
    judged = jnp.where(fresh, rewards, jnp.nan)
    applies = (name == "reward") | jnp.any(~jnp.isnan(judged), axis=-1, keepdims=True)
    return jnp.where(fresh & applies & jnp.isnan(rewards), jnp.minimum(jnp.nanmin(judged), 0.0), rewards)

  rewards = {name: filled(name, values) for name, values in batch.rewards.items()}
  return batch.replace(rewards=rewards, fresh=fresh)


def as_groups(batch: GroupBatch, stats: TokenStats, ref_log_probs: jax.Array, max_importance: float) -> Group:
  """Groups in the form that constraints and methods read, [P, ...]."""
  weight = jnp.ones(batch.fresh.shape)
  if batch.behaviour_log_probs is not None:
    log_probs = jnp.sum(masked(stats.log_prob, batch.mask), axis=-1)
    weight = importance.weights(log_probs, batch.behaviour_log_probs, max_weight=max_importance)
    weight = jnp.where(batch.fresh, weight, 1.0)
  return Group(batch.rewards, ref_log_probs, batch.mask, batch.fresh, batch.replayed, weight, batch.features)


def measure(
  stats: TokenStats, groups: Group, constraints: Mapping[str, Constraint]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Measured values of the current policy: means over its on-policy samples, importance-weighted.

  Returns:
    ({reward, entropy (summed next-token entropies, the Rao-Blackwell estimate), entropy_per_token, kl, length}, each
    constraint's value by name); NaN if no sample was scored, which multipliers and averages skip.
  """
  log_probs, entropies = (jnp.sum(masked(x, groups.mask), axis=-1) for x in (stats.log_prob, stats.entropy))
  named = {
    "reward": constraint_lib.reward_floor("reward", None),
    "entropy": constraint_lib.Constraint(lambda group: group.features["entropies"], None, constraint_lib.FLOOR),
    "kl": constraint_lib.kl_budget(None),
    "length": constraint_lib.length_budget(None),
  }
  with_entropies = groups.replace(features=groups.features | {"entropies": entropies})
  measured = constraint_lib.measure(named, with_entropies, log_probs)
  measured["entropy_per_token"] = measured["entropy"] / jnp.maximum(measured["length"], 1)
  return measured, constraint_lib.measure(constraints, groups, log_probs)


def importance_metrics(stats: TokenStats, batch: GroupBatch, max_importance: float) -> dict[str, jax.Array]:
  """`importance/effective_share` (of the sample size) and `importance/cut` (share of weights at their clip)."""
  log_probs = jnp.sum(masked(stats.log_prob, batch.mask), axis=-1)
  weight = importance.weights(log_probs, batch.behaviour_log_probs, max_weight=max_importance)
  return {
    "importance/effective_share": importance.effective_share(weight, batch.fresh),
    "importance/cut": masked_mean(weight >= max_importance, batch.fresh),
  }
