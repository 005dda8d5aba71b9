"""Builds a run from a config: its plan, its data, and how it is kept."""

import functools
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import loop
from experiments import outside
from experiments import samples
from experiments.batches import groups
from experiments.batches import pairs
from experiments.batches import reward_pairs
from experiments.batches.draws import Draws
from experiments.configured import constraints as build_constraints
from experiments.configured import data as build_data
from experiments.configured import objective as build_objective
from experiments.configured import policy as build_policy
from experiments.configured import ranges
from experiments.configured import reward_data
from experiments.configured import sampling as build_sampling
from experiments.measure import evaluator as evaluators
from experiments.measure.heldout import HeldOut
from experiments.measure.reference import Reference
from experiments.plan import PairSettings
from experiments.plan import Plan
from experiments.plan import Policy
from experiments.run import checkpoints
from experiments.run import profiling
from experiments.run import wandb_log
from experiments.run.checkpoints import Saving
from qempo_jax import duals
from qempo_jax import offline_losses
from qempo_jax import sharding
from qempo_jax.data import order as orders
from qempo_jax.data import preferences
from qempo_jax.errors import InputError
from qempo_jax.models import reward_head


def check_one_method(config: ConfigDict) -> None:
  """Raises InputError where the config holds several methods, or a key has a value that it may not have."""
  if "method" not in config:
    raise InputError("this config holds several methods; give one method's, such as configs/online_qempo_kl.py")
  ranges.check(config)


def plan(config: ConfigDict, policy: Policy, *, trains: bool = True) -> Plan:
  """The computation of the config's run: online where `offline.loss` is none, else on pairs.

  Args:
    config: a complete config.
    policy: the reference; its parameters may be shapes.
    trains: check that batches divide over micro batches and the devices of the mesh.

  Raises:
    InputError: settings that do not go together; names them.
  """
  check_one_method(config)
  if trains:
    build_sampling.check_training(config)
  o, on_pairs = config.offline, config.offline.loss is not None
  objective = build_objective.offline(config) if on_pairs else build_objective.online(config)
  settings = None
  if on_pairs:
    reads = offline_losses.LOSSES[o.loss].needs_reference or o.log_change
    per_row = build_objective.pairs_per_row(config, policy.mesh) if trains else o.pairs_per_row
    responses = build_objective.responses(config)
    settings = PairSettings(o.pairs_per_step, per_row, config.data.length_window, o.measure_every, reads, responses)
  rows = o.pairs_per_step if on_pairs else config.data.prompts_per_step
  return Plan(
    label=build_constraints.label(config),
    steps=config.steps,
    seed=config.seed,
    policy=policy,
    objective=objective,
    optimizers=build_objective.optimizer_pair(config),
    first_state=build_objective.first_state(config),
    as_policy=build_policy.as_policy(config),
    adapters=build_policy.lora_config(config) is not None,
    micro_batches=build_policy.micro_batches(config, rows, policy.mesh) if trains else 1,
    sampling=build_sampling.sampling(config, policy),
    replay_size=config.replay.size,
    stale_steps=config.sampling.stale_steps,
    rewards=build_data.reward_names(config),
    pairs=settings,
    constraints=build_constraints.constraints(config, aim=False),
  )


def run(config: ConfigDict, policy: Policy | None = None, *, check: bool = True) -> loop.Run:
  """The run of a config: data loaded and tokenised, floor checked against the reference, nothing written yet.

  Args:
    config: a complete config.
    policy: the reference; loaded where None.
    check: sample the reference, and check the floor against what it reaches.

  Raises:
    InputError: the config, a row or the reward function is wrong, or the floor is out of reach.
  """
  check_one_method(config)
  wandb_log.check(config.logging.wandb)
  build_sampling.check_training(config)
  if config.offline.loss is None:
    build_objective.online(config)  # a mistake is said before the model is loaded
  else:
    build_objective.offline(config)
  policy = policy or build_policy.policy(config)
  build_constraints.check_entropy_floors(config, policy.config.vocab_size)
  batches, line = (_groups if config.offline.loss is None else _pairs)(config, policy, check)
  policy = build_policy.with_reference_in_its_place(config, policy)
  planned = plan(config, policy)
  return loop.Run(
    label=planned.label,
    steps=config.steps,
    seed=config.seed,
    policy=policy,
    first_state=planned.first_state,
    rules=sharding.STATE_RULES,
    batches=batches(planned),
    constraints=planned.constraints,
    aim=build_constraints.bound(config, "quality", aim=True),
    line=line,
    warn=functools.partial(build_policy.precision_note, config),
    heldout=_heldout(config, policy),
    **_kept(config),
  )


def _heldout(config: ConfigDict, policy: Policy) -> HeldOut | None:
  every = config.evaluation.every
  if not every:
    if config.evaluation.patience:
      raise InputError("evaluation.patience counts measurements, of which evaluation.every=0 makes none: set it too")
    return None
  rows = build_data.evaluation_prompts(config)
  evaluate = evaluator(config, policy, rows, build_data.evaluation_reward(config, rows))
  as_policy = build_policy.as_policy(config)
  return HeldOut(every, config.evaluation.patience, evaluate, lambda trainable: as_policy(trainable, policy.params))


def reward_plan(config: ConfigDict, model: Policy) -> reward_pairs.RewardPlan:
  """The computation of a reward model's run."""
  r = config.reward_model
  names = reward_pairs.RewardSettings._fields
  trained = lambda params: reward_head.split(params, model.config, r.trainable)[0]
  return reward_pairs.RewardPlan(
    steps=config.steps,
    seed=config.seed,
    model=model,
    optimizers=build_objective.optimizer_pair(config),
    first_state=build_objective.first_state(config, trained),
    settings=reward_pairs.RewardSettings(**{name: r[name] for name in names}),
    bucket=config.compute.bucket,
    evaluation_seed=config.evaluation.seed,
  )


def reward_run(config: ConfigDict) -> tuple[loop.Run, reward_pairs.RewardPlan]:
  """The run of a reward model, and its plan."""
  check_one_method(config)
  wandb_log.check(config.logging.wandb)
  model = build_policy.reward_policy(config)
  parts = reward_data.parts(config, model.tokenizer)
  planned = reward_plan(config, model)
  counts = ", ".join(f"{len(found.prompts)} {part}" for part, found in parts.items())
  dropped = sum(found.dropped for found in parts.values())
  made = loop.Run(
    label="reward model",
    steps=config.steps,
    seed=config.seed,
    policy=model,
    first_state=planned.first_state,
    rules=reward_head.RULES,
    batches=reward_pairs.RewardPairs(planned, parts),
    constraints={},
    aim=None,
    line=f"Pairs: {counts}; {dropped} too long, left out; trainable: {config.reward_model.trainable}",
    warn=lambda params: None,
    **_kept(config),
  )
  return made, planned


def saving(config: ConfigDict) -> Saving:
  """Settings of checkpoints and of stopping."""
  c, f = config.checkpoint, config.faults
  return Saving(c.every, c.minutes, c.keep, c.asynchronous, c.folder, f.max_skipped_in_row, f.grace_seconds)


def trained_params(
  config: ConfigDict, workdir: pathlib.Path, policy: Policy, checkpoint: str | int | None = None, **options
):
  """(parameters of one of the workdir's checkpoints, what they are); see `checkpoints.trained_params`."""
  return checkpoints.trained_params(plan(config, policy, trains=False), saving(config), workdir, checkpoint, **options)


def evaluator(config: ConfigDict, policy: Policy, rows, reward, judge=None) -> evaluators.Evaluator:
  """Samples policies on these rows, as the config's evaluation says; see `evaluator.Evaluator`."""
  e = config.evaluation
  settings = evaluators.Settings(
    e.samples_per_prompt, e.prompts_per_batch, e.seed, tuple(e.cluster), e.exact, *e.reward_range[:1]
  )
  judges = {"reward": reward} | ({"judge": judge} if judge else {})
  return evaluators.Evaluator(policy, rows, judges, build_sampling.sampling(config, policy), settings)


def reference(config: ConfigDict, policy: Policy) -> Reference:
  """The reference on the training prompts, for feasibility."""
  rows = build_data.training_rows(config, policy.tokenizer)
  return Reference(
    samples.GroupSampler(policy, build_sampling.sampling(config, policy), rows),
    build_data.reward_for(config, rows),
    policy.params,
    seed=config.evaluation.seed,
    floor=config.constraints.quality.bound,
    margin=config.constraints.quality.margin,
    max_reward=config.reward.max,
  )


def _groups(config: ConfigDict, policy: Policy, check: bool):
  """(plan -> the batches of an online run, a line about the reference)."""
  measured = reference(config, policy)
  line = measured.check(config.data.prompts_per_step, config.sampling.group_size) if check else ""
  sample, reward, r = measured.sample, measured.reward, config.replay
  settings = build_sampling.sampling(config, policy)
  if config.sampling.function:
    sample = outside.OutsideSampler(policy, settings, sample.rows, outside.resolve(config.sampling.function))
  line = "; ".join(filter(None, (line, build_sampling.in_words(settings))))
  del measured, policy  # they hold parameters that the caller may move
  order = orders.Order(len(sample.rows), batch_size=config.data.prompts_per_step, seed=config.seed)
  ahead = bool(config.sampling.stale_steps)
  make = functools.partial(Draws, group_size=config.sampling.group_size, steps=config.steps, ahead=ahead)

  def batches(planned: Plan) -> groups.Groups:
    replay = groups.Replay(planned, min_reward=r.min_reward, key=r.key, capacity=r.capacity, rows=sample.rows)
    acceptable = build_constraints.acceptable(config)
    drawn = make(sample, reward, order)
    return groups.Groups(planned, drawn, replay, max_reward=config.reward.max, acceptable=acceptable)

  return batches, line


def _pairs(config: ConfigDict, policy: Policy, check: bool):
  """(plan -> the batches of an offline run, a line about pairs and reference)."""
  o = config.offline
  params, policy = policy.params, policy._replace(params=None)  # which the caller may move
  encode = functools.partial(build_data.encoded, config, policy)
  settings = build_sampling.sampling(config, policy)
  if o.pairs == "source":
    found = encode(build_data.pairs(config, policy.tokenizer))
    rows = preferences.prompt_rows(found.rows)
    line = f"{len(found.rows)} pairs of {len(rows)} prompts ({found.dropped} pairs too long)"
  else:
    known = o.pairs == "answers_against_samples"
    if known and config.data.source != "open_list":
      raise InputError("offline.pairs=answers_against_samples needs data.source=open_list, whose answers are known")
    rows = build_data.training_rows(config, policy.tokenizer)
    line = "Pairs are sampled from the reference"
  function = build_data.reward_for(config, rows) if o.measure_every or o.pairs != "source" else None
  if o.pairs != "source":
    read = functools.partial(build_data.read_pairs, config, tokenizer=None)
    make = build_data.samples_as_pairs(config, known)
    found = pairs.Sampled(settings, rows, function, seed=config.seed, make=make, read=read)

  measure = None
  if o.measure_every:
    measure = pairs.Measurement(samples.GroupSampler(policy, settings, rows), function, settings, seed=config.seed)

  def batches(planned: Plan) -> pairs.Pairs:
    more = {"cached": o.reference_cache, "chosen_fall": o.chosen_fall}
    return pairs.Pairs(planned, found, encode=encode, measure=measure, **more)

  if measure is None:
    bounds = [
      f"constraints.{name}.bound={one.bound:g}"
      for name, one in build_constraints.settings(config).items()
      if one.bound is not None
    ]
    without = f"; WARNING: no effect of {', '.join(bounds)} without offline.measure_every" * bool(bounds)
    return batches, f"{line}; the reward is not measured, so no floor is enforced{without}"
  return batches, f"{line}; {_measured(config, measure, params)}" if check else line


def _measured(config: ConfigDict, measure: pairs.Measurement, params: Any) -> str:
  """A line about the reference's reward before training; raises InputError where the floor is out of reach."""
  rewards = measure(params, 0, jax.random.key(config.evaluation.seed))[0].rewards["reward"]
  aim = build_constraints.bound(config, "quality", aim=True)
  if aim is not None:
    duals.resolve_floor(aim, rewards, max_reward=config.reward.max)
  best = rewards.max(axis=1).mean()
  line = f"reference policy: reward {rewards.mean():.3f}, {best:.3f} for the best of {rewards.shape[1]}"
  fixed = aim is not None and config.offline.weights == "fixed"
  return line + ("; weights are fixed: the floor is measured, not enforced" if fixed else "")


def _kept(config: ConfigDict) -> dict[str, Any]:
  """Settings of a run's logs and checkpoints."""
  return {
    "max_entropy_per_token": config.alarms.max_entropy_per_token,
    "saving": saving(config),
    "profile": profiling.Profiling(config.logging.profile_steps, config.logging.profile_after),
    "wandb": config.logging.wandb,
    "learning_rate": build_objective.schedule(config),
    "config": json.loads(config.to_json_best_effort()),
  }
