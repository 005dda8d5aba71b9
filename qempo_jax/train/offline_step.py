"""The offline steps: one pure function updates the policy on pairs, another updates the multipliers on measurements.

A pairwise loss enforces no constraint: its weights (alpha, beta) are hyper-parameters unless E_pi[r] is measured. So
the policy step reads its weights from the multipliers in the state. Between policy steps the dual step updates the
multipliers with the online controllers, on values measured on fresh samples of the policy:

    policy step   params <- params - grad mean_i L(pair_i; alpha, beta),     (alpha, beta) = weights(lambda, mu)
    dual step     (lambda, mu) <- controller(R - E_pi[r], KL(pi || q) - K)

With preferences of a Bradley-Terry model the policy step's optimum is pi ∝ q^(beta/alpha) exp(r/alpha). The pair of
steps therefore ends at the optimum of QEMPO or QEMPO-KL (reconstruction, after arXiv 2602.15894). lambda is then in
nats per unit of the reward *implied by the preferences*, not of the measured reward.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import optax

from qempo_jax import duals
from qempo_jax import offline_losses
from qempo_jax import scoring
from qempo_jax.constraints import Constraint
from qempo_jax.family import Weights
from qempo_jax.masking import masked_mean
from qempo_jax.models.config import ModelConfig
from qempo_jax.offline_losses import Example
from qempo_jax.offline_losses import ListWeights
from qempo_jax.offline_losses import LossSettings
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import accumulation
from qempo_jax.train import online_step
from qempo_jax.train import step
from qempo_jax.train.online_step import GroupBatch
from qempo_jax.train.state import TrainState
from qempo_jax.train.state import whole_policy
from qempo_jax.types import PackedGroups

_TIE = 1e-5  # Margins this small are rounding, in reward units.


@struct.dataclass
class PairBatch:
  """Prompts with a chosen and a rejected response each; G = 1 for NLL, 3 for KTO (see `offline_losses.Example`).

  Attributes:
    packed: each prompt once, with its responses.
    mask: [P, G, T] True on response tokens, EOS included.
    ref_log_probs: [P, G] log-probs of whole responses under the reference, nats; None if unused.
    weight: [P] weight of each example in the loss; None for 1.
    lists: arrays [P, G] of listwise losses; None for pairs.
  """

  packed: PackedGroups
  mask: jax.Array
  ref_log_probs: jax.Array | None
  weight: jax.Array | None = None
  lists: ListWeights | None = None


@dataclasses.dataclass(frozen=True)
class OfflineObjective:
  """Settings of the offline steps.

  Attributes:
    loss: a key of `offline_losses.LOSSES`.
    weights: fixed (alpha, beta); None derives them from the multipliers in the state.
    settings: the loss's other hyper-parameters.
    constraints: by name, all measured; those with a bound have learned multipliers.
    averaging: decay of the averages of measured values.
    router_weight: weight of a mixture's load-balancing loss, see `models.experts`.
  """

  loss: str
  weights: tuple[float, float] | None
  settings: LossSettings
  constraints: Mapping[str, Constraint]
  averaging: float
  router_weight: float = 0.0


def offline_step(
  state: TrainState,
  batch: PairBatch,
  ref_params=None,
  *,
  config: ModelConfig,
  objective: OfflineObjective,
  optimizer: optax.GradientTransformation,
  temperature: float,
  chunk_size: int,
  as_policy: Callable = whole_policy,
  micro_batches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Updates the policy on pairs, unless the loss or gradient is not finite; the multipliers are unchanged.

  Args:
    state: the run.
    batch: pairs, with the reference's log-probs if the loss needs them.
    ref_params: the reference policy, for `as_policy`; None if it needs none.
    config: the decoder's config.
    objective: the loss and its weights.
    optimizer: the policy's.
    temperature: the sampler's temperature.
    chunk_size: tokens per chunk of logits.
    as_policy: (state.params, ref_params) -> the policy's parameters, as in `online_step.online_step`.
    micro_batches: number of microbatches of gradient accumulation; divides P.

  Returns:
    (the next state, metrics: scalars by name, see `pair_metrics`).
  """
  entry = offline_losses.LOSSES[objective.loss]
  weights = current_weights(state.dual_params, objective)

  count = jnp.sum(batch.mask[:, 0]) if entry.per_token else batch.mask.shape[0]

  def stats_of(params, rows):
    policy = as_policy(params, ref_params)
    return score(policy, rows, config=config, temperature=temperature, chunk_size=chunk_size)

  reference_kl = None  # of all rows, before the first microbatch; without microbatches `_examples` computes it
  if entry.responses == 3 and micro_batches > 1:
    log_ratios = lambda rows: _mismatched_log_ratios(stats_of(state.params, rows), rows)
    reference_kl = jnp.mean(accumulation.map_rows(log_ratios, batch, micro_batches=micro_batches))

  def loss(stats, rows):
    one = lambda example: offline_losses.example_loss(objective.loss, example, weights, objective.settings)
    found = jax.vmap(one)(_examples(stats, rows, reference_kl)) / count
    found = found if rows.weight is None else found * rows.weight
    if stats.router_loss is None:
      return found
    return found + objective.router_weight * stats.router_loss / batch.mask.shape[0]

  next_state, stats, metrics = step.policy_step(
    state, batch, score=stats_of, loss=loss, optimizer=optimizer, micro_batches=micro_batches
  )
  if stats.router_loss is not None:
    metrics["router_loss"] = jnp.mean(stats.router_loss)
  return next_state, metrics | pair_metrics(stats, _examples(stats, batch, reference_kl), batch, weights, objective)


def dual_step(
  state: TrainState,
  ref_params,
  batch: GroupBatch,
  stats: TokenStats,
  *,
  config: ModelConfig,
  objective: OfflineObjective,
  optimizer: optax.GradientTransformation,
  temperature: float,
  chunk_size: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Updates the multipliers on fresh samples of the policy; the policy is unchanged.

  Args:
    state: the run.
    ref_params: the reference policy, for the measured KL.
    batch: scored groups, all on-policy.
    stats: the sampler's log-probs and entropies of the samples, [P, G, T].
    config: the decoder's config.
    objective: the constraints.
    optimizer: the multipliers' controller.
    temperature: the sampler's temperature.
    chunk_size: tokens per chunk of logits.

  Returns:
    (the next state, measured values and `dual/...` metrics, with the multipliers before the update).
  """
  ref_stats = score(ref_params, batch, config=config, temperature=temperature, chunk_size=chunk_size)
  groups = online_step.as_groups(batch, stats, jnp.sum(ref_stats.log_prob, axis=-1), float("inf"))
  measured, values = online_step.measure(stats, groups, objective.constraints)
  next_state, metrics = step.dual_step(
    state, measured | values, constraints=objective.constraints, controller=optimizer, averaging=objective.averaging
  )
  return next_state, measured | metrics


def score(params, batch, *, config: ModelConfig, temperature: float, chunk_size: int) -> TokenStats:
  """Log-probs and entropies of a batch's response tokens, each prompt computed once: [P, G, T], nats."""
  _, group_size, max_length = batch.mask.shape
  return scoring.score_groups(
    params,
    config,
    batch.packed,
    group_size=group_size,
    max_length=max_length,
    temperature=temperature,
    chunk_size=chunk_size,
  )


def current_weights(dual_params: duals.DualParams, objective: OfflineObjective) -> Weights:
  """Returns the weights in effect: fixed ones, or those of the multipliers."""
  if objective.weights is not None:
    fixed = Weights(*(jnp.asarray(weight, jnp.float32) for weight in objective.weights))
    return offline_losses.effective_weights(objective.loss, fixed)
  multipliers = duals.multipliers(dual_params)
  return offline_losses.weights_from_multipliers(objective.loss, multipliers["quality"], multipliers["kl"])


def pair_metrics(stats, examples: Example, batch: PairBatch, weights: Weights, objective: OfflineObjective):
  """Metrics of a batch of pairs, as means over its prompts.

  - `chosen_log_prob`, `rejected_log_prob`: nats, whole responses; `..._change` is the difference from the reference, and
    `..._length` is in tokens.
  - `margin`: implicit reward, reward units; `accuracy` is the share of positive margins, half for a tie.
  - `token_entropy`: nats per token, on the given responses, not the policy's own entropy.
  - `alpha` and `beta`: the weights in effect.
  """
  log_probs, lengths, sides = jax.vmap(lambda e: (e.log_probs, e.lengths, e.sides))(examples)
  there = [jnp.sum(side, axis=-1) > 0 for side in sides]
  metrics = {"token_entropy": masked_mean(stats.entropy, batch.mask)}
  for side, found, name in zip(sides, there, ("chosen", "rejected")[: log_probs.shape[1]]):
    mean = lambda x, side=side, found=found: masked_mean(jax.vmap(offline_losses.side_mean)(x, side), found)
    metrics |= {f"{name}_log_prob": mean(log_probs), f"{name}_length": mean(lengths)}
    if batch.ref_log_probs is not None:
      metrics[f"{name}_change"] = mean(log_probs - batch.ref_log_probs)
  if offline_losses.LOSSES[objective.loss].weighted:
    margins = jax.vmap(lambda e: offline_losses.implicit_margin(objective.loss, e, weights))(examples)
    correct = jnp.where(jnp.abs(margins) <= _TIE, 0.5, margins > 0)
    margin, accuracy = (masked_mean(x, there[0] & there[1]) for x in (margins, correct))
    metrics |= {"margin": margin, "accuracy": accuracy}
    metrics |= {"alpha": weights.alpha, "beta": weights.beta}
  return metrics


def _mismatched_log_ratios(stats: TokenStats, batch: PairBatch) -> jax.Array:
  """[P] log ratios of responses to another prompt, nats."""
  return jnp.sum(stats.log_prob[:, 2], axis=-1) - batch.ref_log_probs[:, 2]


def _examples(stats: TokenStats, batch: PairBatch, reference_kl: jax.Array | None) -> Example:
  """One example per prompt, on a leading axis; without `reference_kl` it is the mean over these rows."""
  prompts, group_size = batch.mask.shape[:2]
  ref_log_probs = jnp.zeros((prompts, group_size)) if batch.ref_log_probs is None else batch.ref_log_probs
  if reference_kl is None:
    reference_kl = jnp.mean(_mismatched_log_ratios(stats, batch)) if group_size == 3 else jnp.zeros(())
  repeated = jnp.broadcast_to(reference_kl, (prompts,))
  return Example(stats.log_prob, batch.mask, ref_log_probs, repeated, batch.lists)
