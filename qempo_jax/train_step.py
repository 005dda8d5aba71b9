"""The online step: one pure function from (state, scored groups) to (state, metrics).

Policy and multipliers move together. With quality multiplier lambda, KL multiplier mu and entropy weight h,
the policy climbs

    E[lambda r - (h + mu) log pi + mu log q] / (h + lambda + mu)

(the objective of `advantages.lagrangian_rewards`: h = 1 is QEMPO and QEMPO-KL, h = 0 with mu = 1 is RLHF), and
each multiplier of an enforced constraint follows its controller on the value measured on this step's samples.
"""

import dataclasses
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from qempo_jax import advantages
from qempo_jax import duals
from qempo_jax import estimators
from qempo_jax import scoring
from qempo_jax.losses.policy_gradient import policy_gradient_loss
from qempo_jax.masking import masked_mean
from qempo_jax.models.config import ModelConfig
from qempo_jax.train_state import TrainState
from qempo_jax.types import PackedGroups


@struct.dataclass
class GroupBatch:
  """Groups of responses with their rewards.

  Attributes:
    packed: prompts and responses.
    mask: [P, G, T] response tokens, the ending token included.
    rewards: [P, G] in the reward's unit.
    fresh: [P, G] true on samples of the current policy; the measured values come from these alone.
    replayed: [P, G] true on responses found earlier (off-policy); a response that is neither is not there.
  """

  packed: PackedGroups
  mask: jax.Array
  rewards: jax.Array
  fresh: jax.Array
  replayed: jax.Array


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
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the policy and of the multipliers.

  Args:
    state: the run.
    ref_params: the reference policy.
    batch: groups of fresh samples, and replayed responses beside them.
    config: the decoder's shape.
    objective: what is climbed.
    optimizers: the policy's and the multipliers'.
    temperature: that of the sampler.
    chunk_size: tokens whose logits exist at once.

  Returns:
    (the next state, metrics: scalars by name; entropies and KL in nats a sequence, lengths in tokens).
  """
  _, group_size, max_length = batch.mask.shape
  score = lambda params: scoring.score_groups(
      params,
      config,
      batch.packed,
      group_size=group_size,
      max_length=max_length,
      temperature=temperature,
      chunk_size=chunk_size,
  )
  ref_log_probs = jnp.sum(score(ref_params).log_prob, axis=-1)
  multipliers = duals.multipliers(state.dual_params)

  def loss_fn(params):
    stats = score(params)
    losses = jax.vmap(_group_loss, in_axes=(0, 0, 0, None, None))(
        stats, ref_log_probs, batch, multipliers, objective
    )
    return jnp.mean(losses), stats

  (loss, stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  updates, opt_state = optimizers.policy.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)

  measured = measure(stats, ref_log_probs, batch)
  moved = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  next_state, metrics = move_multipliers(moved, measured, objective, optimizers.dual)
  return next_state, metrics | {"loss": loss, "grad_norm": optax.global_norm(gradient)}


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
  gradient = jax.grad(lambda d: duals.lagrangian_terms(d, constraints).dual_loss)(state.dual_params)
  updates, dual_opt_state = optimizer.update(gradient, state.dual_opt_state, state.dual_params)
  multipliers = duals.multipliers(state.dual_params)
  named = {f"{name}_multiplier": value for name, value in multipliers.items()}
  metrics = measured | {f"dual/{name}/multiplier": value for name, value in multipliers.items()}
  metrics |= duals.dual_metrics(state.dual_params, constraints)
  next_state = state.replace(
      dual_params=optax.apply_updates(state.dual_params, updates),
      dual_opt_state=dual_opt_state,
      averages=state.averages.update(measured | named, objective.averaging),
  )
  return next_state, metrics


def measure(stats, ref_log_probs, batch: GroupBatch) -> dict[str, jax.Array]:
  """Measured values of the current policy: means over its fresh samples.

  Entropy is the mean of the summed next-token entropies (the Rao-Blackwell estimate), KL the mean of
  log pi - log q over whole sequences.
  """
  mean = lambda values: masked_mean(values, batch.fresh)
  length = mean(jnp.sum(batch.mask, axis=-1))
  entropy = mean(jnp.sum(stats.entropy, axis=-1))
  return {
      "reward": mean(batch.rewards),
      "entropy": entropy,
      "entropy_per_token": entropy / jnp.maximum(length, 1),
      "kl": mean(jnp.sum(stats.log_prob, axis=-1) - ref_log_probs),
      "length": length,
  }


def _group_loss(stats, ref_log_probs, group: GroupBatch, multipliers, objective: OnlineObjective):
  """Loss of one prompt's group; its gradient is minus that of the Lagrangian over (h + lambda + mu)."""
  weights = {
      "quality_multiplier": multipliers["quality"],
      "kl_multiplier": multipliers["kl"],
      "entropy_weight": objective.entropy_weight,
  }
  log_probs = jax.lax.stop_gradient(jnp.sum(stats.log_prob, axis=-1))
  shaped = advantages.lagrangian_rewards(group.rewards, log_probs, ref_log_probs, **weights)
  loss_of = jax.vmap(policy_gradient_loss)

  if objective.entropy_gradient == "rao_blackwell":
    # log pi leaves the reward; its part of the gradient comes from the next-token entropies.
    scale = (objective.entropy_weight + multipliers["kl"]) / (
        objective.entropy_weight + multipliers["quality"] + multipliers["kl"]
    )
    credited = shaped + scale * log_probs
    surrogate = jax.vmap(estimators.sequence_entropy_surrogate)
    entropy_loss = -scale * surrogate(stats.log_prob, stats.entropy, group.mask)
  else:
    credited, entropy_loss = shaped, 0.0
  baseline = advantages.leave_one_out if objective.baseline == "leave_one_out" else advantages.group_mean
  advantage = baseline(credited, group.fresh)
  fresh = masked_mean(loss_of(stats.log_prob, advantage, group.mask) + entropy_loss, group.fresh)

  # Trajectory balance, exact off-policy: at the optimum every shaped reward equals alpha log Z.
  log_z = masked_mean(shaped, group.fresh)
  replayed = loss_of(stats.log_prob, shaped - log_z, group.mask)
  count = jnp.maximum(jnp.sum(group.fresh), 1)
  loss = fresh + objective.replay_weight * jnp.sum(replayed * group.replayed) / count
  if objective.normalise:
    spread = jnp.sqrt(masked_mean((shaped - log_z) ** 2, group.fresh))
    loss = loss / jnp.maximum(spread, objective.min_std)
  return loss
