"""The online step: one pure function from (state, scored groups) to (state, metrics).

Policy and multipliers move together. With quality multiplier lambda, KL multiplier mu and entropy weight h,
the policy climbs

    E[lambda r - (h + mu) log pi + mu log q] / (h + lambda + mu)

(the objective of `advantages.lagrangian_rewards`: h = 1 is QEMPO and QEMPO-KL, h = 0 with mu = 1 is RLHF), and
each multiplier of an enforced constraint follows its controller on the value measured on this step's samples.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from qempo_jax import accumulation
from qempo_jax import advantages
from qempo_jax import duals
from qempo_jax import estimators
from qempo_jax import group_transforms
from qempo_jax import importance
from qempo_jax import reward_floors
from qempo_jax import scoring
from qempo_jax.losses.policy_gradient import policy_gradient_loss
from qempo_jax.masking import masked_mean
from qempo_jax.masking import masked_sum
from qempo_jax.models.config import ModelConfig
from qempo_jax.train_state import TrainState
from qempo_jax.train_state import move_policy
from qempo_jax.train_state import unless
from qempo_jax.train_state import whole_policy
from qempo_jax.types import PackedGroups


@struct.dataclass
class GroupBatch:
  """Groups of responses with their rewards.

  Attributes:
    packed: prompts and responses.
    mask: [P, G, T] response tokens, the ending token included.
    rewards: [P, G] in the reward's unit.
    fresh: [P, G] true on samples of the current policy, or the last; the measured values come from these alone.
    replayed: [P, G] true on responses found earlier (off-policy); a response that is neither is not there.
    floor_rewards: [P, G, n] the rewards of `OnlineObjective.reward_floors`, NaN where not scored; None without any.
    similarities: [P, G, G] of the responses, which the transformation "setpo" needs; None without it.
    behaviour_log_probs: [P, G] of fresh responses under the policy that drew them, nats; None where that is the current one.
  """

  packed: PackedGroups
  mask: jax.Array
  rewards: jax.Array
  fresh: jax.Array
  replayed: jax.Array
  floor_rewards: jax.Array | None = None
  similarities: jax.Array | None = None
  behaviour_log_probs: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class OnlineObjective:
  """What the online step climbs.

  Attributes:
    entropy_weight: h, 1 for QEMPO and QEMPO-KL, 0 for RLHF.
    min_reward: the quality floor R whose multiplier is learned; None keeps lambda as it is.
    max_kl: the KL budget K in nats whose multiplier is learned; None keeps mu as it is.
    entropy_gradient: "score_function" (-log pi in the reward) or "rao_blackwell" (exact next-token entropies).
    baseline: "leave_one_out" or "group_mean".
    normalise: divide each prompt's whole loss by the spread of its fresh shaped rewards, as GRPO does. That
      weights prompts by 1 / spread: an optimum that solves every prompt stays one, a compromise between prompts moves.
    replay_weight: weight of a replayed response beside a fresh one's 1, by trajectory balance.
    min_std: floor of that spread.
    averaging: decay of the measured averages.
    reward_floors: (name, floor) of each further reward whose mean is held by a multiplier of that name.
    transform: what another method does to a group's rewards or advantages, see `group_transforms`.
    token_entropy_weight: of the usual fixed bonus on next-token entropies, added to the normalised loss: biased, a baseline;
      None for none.
    max_importance: largest weight of a response that an earlier policy drew, see `importance`.
  """

  entropy_weight: float
  min_reward: float | None
  max_kl: float | None
  entropy_gradient: str
  baseline: str
  normalise: bool
  replay_weight: float
  min_std: float
  averaging: float
  reward_floors: tuple[tuple[str, float], ...] = ()
  transform: group_transforms.Transform = group_transforms.Transform("none", 0.0, 0.0)
  token_entropy_weight: float | None = None
  max_importance: float = float("inf")


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
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the policy and of the multipliers; neither moves where the loss or its gradient is not finite.

  Args:
    state: the run.
    ref_params: the reference policy.
    batch: groups of fresh samples, and replayed responses beside them.
    config: the decoder's shape.
    objective: what is climbed.
    optimizers: the policy's and the multipliers'.
    temperature: that of the sampler.
    chunk_size: tokens whose logits exist at once.
    as_policy: (state.params, ref_params) -> the policy's parameters; where adapters are trained, it puts them
      beside the reference.
    micro_batches: parts of the batch whose gradients are summed, one part in memory at a time; they divide P.

  Returns:
    (the next state, metrics: scalars by name; entropies and KL in nats a sequence, lengths in tokens).
  """
  prompts, group_size, max_length = batch.mask.shape
  score = lambda params, packed: scoring.score_groups(
      params,
      config,
      packed,
      group_size=group_size,
      max_length=max_length,
      temperature=temperature,
      chunk_size=chunk_size,
  )
  ref_log_probs = accumulation.map_rows(
      lambda packed: jnp.sum(score(ref_params, packed).log_prob, axis=-1), batch.packed, micro_batches=micro_batches
  )
  multipliers = duals.multipliers(state.dual_params)

  def loss_fn(params, rows):
    groups, ref_log_probs = rows
    stats = score(as_policy(params, ref_params), groups.packed)
    losses = jax.vmap(group_loss, in_axes=(0, 0, 0, None, None))(
        stats, ref_log_probs, groups, multipliers, objective
    )
    return jnp.sum(losses) / prompts, stats

  (loss, stats), gradient = accumulation.value_and_grad(
      loss_fn, state.params, (batch, ref_log_probs), micro_batches=micro_batches
  )
  moved, told = move_policy(state, gradient, loss, optimizers.policy)
  measured = measure(stats, ref_log_probs, batch, objective) | floor_values(stats, batch, objective)
  next_state, metrics = move_multipliers(moved, measured, objective, optimizers.dual)
  return unless(told["skipped"], next_state, moved), metrics | told


def move_multipliers(
    state: TrainState,
    measured: dict[str, jax.Array],
    objective,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the multipliers on measured values.

  Args:
    state: the run.
    measured: what `measure` gives.
    objective: has the bounds `min_reward` and `max_kl`, None where none is enforced, and `averaging`.
    optimizer: the multipliers' controller.

  Returns:
    (the state with new multipliers and averages, the measured values and `dual/...` metrics, multipliers as
    they were when measured).
  """
  constraints = {}
  if objective.min_reward is not None:
    constraints["quality"] = duals.at_least(measured["reward"], objective.min_reward)
  if objective.max_kl is not None:
    constraints["kl"] = duals.at_most(measured["kl"], objective.max_kl)
  for name, floor in getattr(objective, "reward_floors", ()):
    constraints[name] = duals.at_least(measured[f"reward/{name}"], floor)
  multipliers = duals.multipliers(state.dual_params)
  dual_params, dual_opt_state, enforced = duals.dual_step(
      state.dual_params, state.dual_opt_state, constraints, optimizer
  )
  named = {f"{name}_multiplier": value for name, value in multipliers.items()}
  metrics = measured | {f"dual/{name}/multiplier": value for name, value in multipliers.items()} | enforced
  next_state = state.replace(
      dual_params=dual_params,
      dual_opt_state=dual_opt_state,
      averages=state.averages.update(measured | named, objective.averaging),
  )
  return next_state, metrics


def measure(stats, ref_log_probs, batch: GroupBatch, objective=None) -> dict[str, jax.Array]:
  """Measured values of the current policy: means over its fresh samples, weighted where the last policy drew them.

  Entropy is the mean of the summed next-token entropies (the Rao-Blackwell estimate), KL the mean of
  log pi - log q over whole sequences. All are NaN where no sample was scored, which multipliers and averages skip.
  """
  of_fresh, more = lambda values: masked_mean(values, batch.fresh), {}
  if batch.behaviour_log_probs is not None:
    weight = _importance(stats, batch, objective)
    of_fresh = lambda values: importance.mean(values, weight, batch.fresh)
    more = {
        "importance/effective_share": importance.effective_share(weight, batch.fresh),
        "importance/cut": masked_mean(weight >= objective.max_importance, batch.fresh),
    }
  mean = lambda values: jnp.where(jnp.any(batch.fresh), of_fresh(values), jnp.nan)
  length = mean(jnp.sum(batch.mask, axis=-1))
  entropy = mean(jnp.sum(stats.entropy, axis=-1))
  return {
      "reward": mean(batch.rewards),
      "entropy": entropy,
      "entropy_per_token": entropy / jnp.maximum(length, 1),
      "kl": mean(jnp.sum(stats.log_prob, axis=-1) - ref_log_probs),
      "length": length,
  } | more


def _importance(stats, batch: GroupBatch, objective):
  """Weights of a batch's responses, or of one group's, 1 where they were not drawn but replayed."""
  weight = importance.weights(
      jnp.sum(stats.log_prob, axis=-1), batch.behaviour_log_probs, max_weight=objective.max_importance
  )
  return jnp.where(batch.fresh, weight, 1.0)


def floor_values(stats, batch: GroupBatch, objective: OnlineObjective) -> dict[str, jax.Array]:
  """The mean of each reward with a floor over the fresh samples it scored, as `reward/<name>`; NaN for none scored."""
  if not objective.reward_floors:
    return {}
  weight = None if batch.behaviour_log_probs is None else _importance(stats, batch, objective)
  means = reward_floors.measure(batch.floor_rewards, batch.fresh, weight)
  return {f"reward/{name}": mean for (name, _), mean in zip(objective.reward_floors, means)}


def group_loss(stats, ref_log_probs, group: GroupBatch, multipliers, objective: OnlineObjective):
  """Loss of one prompt's group; its gradient is minus that of the Lagrangian over (h + lambda + mu).

  Args:
    stats: TokenStats of the group's responses, [G, T].
    ref_log_probs: [G] under the reference, nats.
    group: one prompt's part of a batch; `packed` is not read.
    multipliers: by name.
    objective: what is climbed.

  Returns:
    Scalar.
  """
  rewards, quality = group.rewards, multipliers["quality"]
  if objective.reward_floors:
    rewards, quality = reward_floors.combine(
        rewards,
        group.floor_rewards,
        group.fresh,
        quality_multiplier=quality,
        floor_multipliers=jnp.stack([multipliers[name] for name, _ in objective.reward_floors]),
    )
  weights = {
      "quality_multiplier": quality,
      "kl_multiplier": multipliers["kl"],
      "entropy_weight": objective.entropy_weight,
  }
  log_probs = jax.lax.stop_gradient(jnp.sum(stats.log_prob, axis=-1))
  if objective.transform.name == "mara":
    beta = multipliers["kl"] / quality
    rewards = group_transforms.rewards(objective.transform, rewards, ref_log_probs, group.fresh, beta=beta)
  shaped = advantages.lagrangian_rewards(rewards, log_probs, ref_log_probs, **weights)
  loss_of = jax.vmap(policy_gradient_loss)

  if objective.entropy_gradient == "rao_blackwell":
    # log pi leaves the reward; its part of the gradient comes from the next-token entropies.
    scale = (objective.entropy_weight + multipliers["kl"]) / (
        objective.entropy_weight + quality + multipliers["kl"]
    )
    credited = shaped + scale * log_probs
    surrogate = jax.vmap(estimators.sequence_entropy_surrogate)
    entropy_loss = -scale * surrogate(stats.log_prob, stats.entropy, group.mask)
  else:
    credited, entropy_loss = shaped, 0.0
  baseline = advantages.leave_one_out if objective.baseline == "leave_one_out" else advantages.group_mean
  advantage = baseline(credited, group.fresh)
  log_z = masked_mean(shaped, group.fresh)
  spread = 1.0
  if objective.normalise:
    spread = jnp.maximum(jnp.sqrt(masked_mean((shaped - log_z) ** 2, group.fresh)), objective.min_std)
  if objective.transform.name in ("ucpo", "setpo"):
    share = quality / (objective.entropy_weight + quality + multipliers["kl"])
    of_reward = baseline(share * rewards, group.fresh) / spread
    advantage += spread * group_transforms.advantage_change(
        objective.transform, of_reward, group.rewards, log_probs, group.similarities, group.fresh
    )
  fresh_losses = loss_of(stats.log_prob, advantage, group.mask) + entropy_loss
  if group.behaviour_log_probs is not None:
    fresh_losses *= _importance(stats, group, objective)
  fresh = masked_mean(fresh_losses, group.fresh)

  # Trajectory balance, exact off-policy: at the optimum every shaped reward equals alpha log Z, known from fresh ones.
  replayed = loss_of(stats.log_prob, shaped - log_z, group.mask)
  count = jnp.maximum(jnp.sum(group.fresh), 1)
  balance = jnp.sum(replayed * group.replayed) / count
  loss = fresh + objective.replay_weight * jnp.where(jnp.any(group.fresh), balance, 0.0)
  loss = loss / spread
  if objective.token_entropy_weight is not None:
    bonus = masked_mean(jax.vmap(masked_sum)(stats.entropy, group.mask), group.fresh)
    loss -= objective.token_entropy_weight * bonus
  return loss
