"""The training loop, for groups, pairs and reward models alike: batches and their step come with the run."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import json
import pathlib
import time
from typing import Any
from typing import NamedTuple

import jax

from experiments import plan as plans
from experiments.batches.base import Batches
from experiments.measure.heldout import HeldOut
from experiments.plan import Policy
from experiments.run import compilations
from experiments.run import distributed
from experiments.run import metrics_file
from experiments.run import profiling
from experiments.run import wandb_log
from experiments.run import workdir as workdirs
from experiments.run.checkpoints import Saving
from experiments.run.metrics_log import MetricsLog
from experiments.run.saving import Saver
from qempo_jax.constraints import Constraint
from qempo_jax.errors import InputError


class Run(NamedTuple):
  """A run, built from its config and not yet started.

  Attributes:
    label: name in reports, logs and certificates, with the seed behind it in Weights & Biases.
    steps: parameter updates.
    seed: of the run.
    policy: the model before training.
    first_state: the model's parameters -> the state before the first step.
    rules: sharding rules of the state.
    batches: the data and its step.
    constraints: by which checkpoints are ranked.
    aim: the quality floor that the controller aims at; None for none.
    max_entropy_per_token: the run stops above it, nats.
    saving: settings of checkpoints.
    profile: settings of the profiler.
    wandb: project of Weights & Biases; "" for none.
    config: the complete config, JSON-able.
    line: findings while building, for the user.
    warn: the first state's parameters -> a warning, or None.
    learning_rate: of every update, from 0.
    heldout: measures held-out prompts in between; None for never.
  """

  label: str
  steps: int
  seed: int
  policy: Policy
  first_state: Callable
  rules: Any
  batches: Batches
  constraints: Mapping[str, Constraint]
  aim: float | None
  max_entropy_per_token: float
  saving: Saving
  profile: profiling.Profiling
  wandb: str
  config: Mapping[str, Any]
  line: str
  warn: Callable[[Any], str | None]
  learning_rate: Callable[[int], float]
  heldout: HeldOut | None = None


class _Step(NamedTuple):
  """A dispatched update: its number, metrics on the devices and of the host, and when it began."""

  number: int
  metrics: dict[str, jax.Array]
  host: dict[str, float]
  started: float


def train(run: Run, workdir: pathlib.Path, display):
  """Trains from the run's policy, or from the newest checkpoint, and writes `metrics.jsonl`.

  The metrics of a step are read while the devices work at the next one.

  Args:
    run: the training run.
    workdir: where metrics and checkpoints go.
    display: gets every step's metrics.

  Returns:
    The last TrainState.

  Raises:
    InputError: a checkpoint does not belong to this run, updates are skipped again and again, or entropy explodes.
  """
  # 1. What is made once: sampled pairs, log-probs of the reference, outputs of frozen blocks.
  batches = run.batches
  batches.prepare(workdir, display.note)

  # 2. The first state, and the compiled steps.
  state, shardings = plans.initial(run.first_state, run.policy.params, run.policy.mesh, run.rules)
  batches.compile(shardings)
  for line in filter(None, (*batches.notes, run.warn(state.params))):
    display.note(line)

  # 3. Where an earlier run stopped.
  workdirs.check_in_place(workdir)
  saver = Saver(
    run.saving, workdir, display.note, config=run.config, steps=run.steps, same=batches.same,
    tokenizer=run.policy.tokenizer, order=batches.order, constraints=run.constraints,
  )  # fmt: skip
  state, memory = saver.restore(state)
  if memory:
    batches.from_json(memory)
  first = int(state.step)
  rows = [row for row in metrics_file.read(workdir / metrics_file.NAME) if row["step"] <= first] if run.heldout else []
  ends = lambda: distributed.from_first(lambda: run.heldout.ending(rows))  # who has no metrics file goes along
  ending = ends() if run.heldout else None
  log = MetricsLog(workdir / metrics_file.NAME, keep=first, note=display.note)
  if distributed.is_writer():
    workdirs.write(workdir / workdirs.DATA, json.dumps(batches.same) + "\n")
  log = wandb_log.also(run.wandb, log, name=f"{run.label}-seed{run.seed}", config=run.config)

  # 4. The loop.
  with saver, batches, contextlib.closing(log), compilations.Counter() as compiled:

    def record(step: _Step, ended: float) -> None:
      metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()} | step.host
      seconds = ended - step.started
      metrics |= {"step": step.number, "floor": run.aim, "seconds": seconds, "compilations": compiled.take()}
      metrics["learning_rate"] = float(run.learning_rate(step.number - 1))
      metrics["tokens_per_second"] = metrics.pop("tokens") / seconds
      metrics |= saver.count(metrics)
      log.write(metrics)
      display.step(step.number, metrics)
      saver.check(step.number)
      _check_entropy(metrics, run.max_entropy_per_token)
      for line in batches.remarks(metrics):
        display.note(line)

    last = None
    for index in profiling.traced(range(first, first if ending else run.steps), run.profile, workdir, display.note):
      started = time.monotonic()
      state, *metrics = batches(state, index)
      if last:
        record(last, started)
      last = _Step(index + 1, *metrics, started)
      if run.heldout and (found := run.heldout(state.params, index + 1)):
        last.host.update(found)
        rows.append(found | {"step": index + 1})
        ending = ends()
      if saver.due(index + 1) or ending:
        jax.block_until_ready(state.step)
        record(last, time.monotonic())
        last = None
        saver.save(state, index + 1, log, batches.to_json)
      if ending:
        break
  if ending:
    display.note(ending)
  return state


def _check_entropy(metrics: dict[str, float], bound: float) -> None:
  """Raises InputError where entropy has exploded."""
  if metrics.get("entropy_per_token", 0.0) > bound:
    raise InputError(
      f"step {metrics['step']}: entropy per token is {metrics['entropy_per_token']:.2f} nats, above"
      f" alarms.max_entropy_per_token={bound}; raise constraints.quality.start or its gains (offline: lower offline.alpha),"
      " or set constraints.kl.bound"
    )
