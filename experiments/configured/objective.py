"""The `method`, `offline`, `optimizer` and `duals` groups of a config -> objectives, optimizers and the first state."""

from collections.abc import Callable
import dataclasses

import jax
from ml_collections import ConfigDict

from experiments.configured import constraints as build_constraints
from experiments.configured import policy as build_policy
from qempo_jax import offline_losses
from qempo_jax.errors import InputError
from qempo_jax.offline_losses import LossSettings
from qempo_jax.train import online_step
from qempo_jax.train import optimizers
from qempo_jax.train import state as train_state
from qempo_jax.train.offline_step import OfflineObjective


def online(config: ConfigDict) -> online_step.OnlineObjective:
  """The objective of the online step.

  Raises:
    InputError: the method's baseline leaves no advantage in the groups of one that the config asks for.
  """
  method = build_constraints.method(config)
  if config.sampling.group_size == 1 and not method.baseline(jax.numpy.ones(1), jax.numpy.ones(1, bool)).any():
    raise InputError(
      f"sampling.group_size=1 leaves {config.method} nothing to learn from: its baseline is the mean of the group, so every"
      " advantage is 0; set it to 2 or more"
    )
  return online_step.OnlineObjective(
    method=method,
    constraints=build_constraints.constraints(config),
    replay_weight=config.replay.weight,
    averaging=config.duals.averaging,
    max_importance=config.sampling.max_importance,
    router_weight=config.optimizer.router_weight,
  )


def optimizer_pair(config: ConfigDict) -> online_step.Optimizers:
  """The policy's AdamW and the multipliers' controller."""
  o = config.optimizer
  policy_optimizer = optimizers.adamw(
    learning_rate=o.learning_rate,
    warmup_steps=o.warmup_steps,
    total_steps=config.steps,
    final_fraction=o.final_fraction,
    b1=o.b1,
    b2=o.b2,
    weight_decay=o.weight_decay,
    max_grad_norm=o.max_grad_norm,
    moments_dtype=o.moments_dtype,
  )
  return online_step.Optimizers(policy_optimizer, build_constraints.controller(config))


def schedule(config: ConfigDict) -> Callable[[int], float]:
  """The learning rate of every update, from 0."""
  o = config.optimizer
  settings = {"warmup_steps": o.warmup_steps, "total_steps": config.steps, "final_fraction": o.final_fraction}
  return optimizers.linear_schedule(o.learning_rate, **settings)


def first_state(config: ConfigDict, trainable: Callable | None = None) -> Callable:
  """The function from the reference's parameters to the state before the first step.

  Args:
    config: a complete config.
    trainable: parameters -> the trainable ones; by default the whole policy, or its adapters.
  """
  tools, multipliers = optimizer_pair(config), build_constraints.dual_params(config)
  trainable = trainable or (lambda params: build_policy.trainable(config, params))
  return lambda params: train_state.create(
    trainable(params),
    multipliers,
    jax.random.key(config.seed),
    optimizer=tools.policy,
    dual_optimizer=tools.dual,
    averaged=(*train_state.AVERAGED, *build_constraints.settings(config)),
  )


def offline(config: ConfigDict) -> OfflineObjective:
  """The objective of the offline steps.

  Raises:
    InputError: an unknown choice, a number out of range, or a floor or budget that nothing could enforce.
  """
  o = config.offline
  _check(config)
  learned, found = o.weights == "multipliers", build_constraints.constraints(config)
  return OfflineObjective(
    loss=o.loss,
    weights=None if learned else (o.alpha, o.beta),
    settings=LossSettings(
      label_smoothing=o.label_smoothing,
      margin=o.margin,
      desirable_weight=o.desirable_weight,
      undesirable_weight=o.undesirable_weight,
      nll_weight=o.nll_weight,
      pair_weight=o.pair_weight,
      min_reward=config.constraints.quality.bound or 0.0,
    ),
    constraints=found if learned else {name: dataclasses.replace(c, bound=None) for name, c in found.items()},
    averaging=config.duals.averaging,
    router_weight=config.optimizer.router_weight,
  )


def responses(config: ConfigDict) -> int:
  """Number of responses in an example of the loss."""
  entry = offline_losses.LOSSES[config.offline.loss]
  return config.offline.list_size if entry.lists else entry.responses


def pairs_per_row(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> int:
  """Number of pairs of a batch that share a row.

  Raises:
    InputError: that many leave rows that micro batches or the mesh do not divide.
  """
  pairs, per_row = config.offline.pairs_per_step, config.offline.pairs_per_row
  shards = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
  parts = config.compute.micro_batches * shards
  if per_row < 1 or (per_row > 1 and pairs % (per_row * parts)):
    raise InputError(
      f"config.offline.pairs_per_row={per_row} must divide the {pairs / parts:g} pairs that offline.pairs_per_step={pairs}"
      f" leaves for each of compute.micro_batches x data x fsdp = {parts} parts; choose a divisor, or 1"
    )
  return per_row


def _check(config) -> None:
  o = config.offline
  if o.loss not in offline_losses.LOSSES:
    raise InputError(f"config.offline.loss={o.loss!r} is not one of {', '.join(offline_losses.LOSSES)}")
  entry, learned = offline_losses.LOSSES[o.loss], o.weights == "multipliers"
  bounds = {name: c.bound for name, c in build_constraints.constraints(config).items() if c.bound is not None}
  others = sorted(set(bounds) - set(build_constraints.ALWAYS))
  reads_beta = offline_losses.acts_with_beta_alone(o.loss)
  for wrong, advice in (
    (
      learned and not entry.weighted,
      f"offline.loss={o.loss} has no weight that a multiplier could move; set offline.weights=fixed",
    ),
    (
      o.loss == "kto" and not o.desirable_weight + o.undesirable_weight + o.nll_weight,
      "offline.desirable_weight and offline.undesirable_weight are both 0, which leaves offline.loss=kto nothing to learn from;"
      " set one of them above 0",
    ),
    (
      o.loss == "regression" and not 0 < (config.constraints.quality.bound or 0) < 1,
      "offline.loss=regression needs constraints.quality.bound in (0, 1), the target's share of acceptable responses",
    ),
    (
      learned and bounds and not o.measure_every,
      "a floor or budget offline needs offline.measure_every, the updates between measurements: pairs alone"
      " enforce nothing",
    ),
    (
      learned and "kl" in bounds and not entry.needs_reference,
      f"offline.loss={o.loss} has no reference, so constraints.kl.bound cannot be enforced; use qempo_kl, or no budget",
    ),
    (
      bool(others),
      f"constraint {others[0] if others else None!r} is enforced online alone; set its bound to none",
    ),
    (not learned and reads_beta and o.beta == 0, f"offline.loss={o.loss} needs a positive offline.beta"),
    (
      learned and reads_beta and config.constraints.kl.start == 0,
      f"offline.loss={o.loss} needs a positive constraints.kl.start: its beta is kl / quality multiplier",
    ),
  ):
    if wrong:
      raise InputError(f"{advice} (config.offline)")
