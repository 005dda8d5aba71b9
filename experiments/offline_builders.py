"""The `offline` group of a config -> typed objects, with what does not go together said in one line."""

import dataclasses

import jax
from ml_collections import ConfigDict

from experiments import constrained
from qempo_jax import offline_losses
from qempo_jax.errors import InputError
from qempo_jax.offline_losses import LossSettings
from qempo_jax.train.offline_step import OfflineObjective


def objective(config: ConfigDict) -> OfflineObjective:
  """What the offline steps do.

  Raises:
    InputError: an unknown choice, a number out of range, or a floor or budget that nothing could enforce.
  """
  o = config.offline
  _check(config)
  learned, found = o.weights == "multipliers", constrained.constraints(config)
  return OfflineObjective(
    loss=o.loss,
    weights=None if learned else (o.alpha, o.beta),
    settings=LossSettings(
      label_smoothing=o.label_smoothing,
      margin=o.margin,
      desirable_weight=o.desirable_weight,
      undesirable_weight=o.undesirable_weight,
      nll_weight=o.nll_weight,
    ),
    constraints=found if learned else {name: dataclasses.replace(c, bound=None) for name, c in found.items()},
    averaging=config.duals.averaging,
  )


def pairs_per_row(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> int:
  """How many pairs of a batch share a row.

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
  _one_of("loss", o.loss, tuple(offline_losses.LOSSES))
  _one_of("weights", o.weights, ("fixed", "multipliers"))
  _one_of("pairs", o.pairs, ("source", "sampled", "answers_against_samples"))
  entry, learned = offline_losses.LOSSES[o.loss], o.weights == "multipliers"
  bounds = {name: c.bound for name, c in constrained.constraints(config).items() if c.bound is not None}
  others = sorted(set(bounds) - set(constrained.ALWAYS))
  reads_beta = offline_losses.acts_with_beta_alone(o.loss)
  for wrong, advice in (
    (o.alpha <= 0 or o.beta < 0, "offline.alpha must be positive and offline.beta at least 0"),
    (not 0 <= o.label_smoothing < 0.5, "offline.label_smoothing must be at least 0 and below 0.5"),
    (o.pairs_per_step < 1 or o.pairs_per_prompt < 1, "offline.pairs_per_step and pairs_per_prompt must be positive"),
    (o.measure_every < 0, "offline.measure_every must be at least 0 (0 never measures)"),
    (
      learned and o.loss == "nll",
      "offline.loss=nll has no weight that a multiplier could move; set offline.weights=fixed",
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


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise InputError(f"config.offline.{key}={value!r} is not one of {', '.join(allowed)}")
