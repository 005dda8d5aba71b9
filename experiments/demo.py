"""The demo: base, GRPO, QEMPO and QEMPO-KL on a real small model, compared at one quality floor."""

import functools
import json
import pathlib
import sys

import jax
from rich.console import Console

from experiments import builders
from experiments import cli
from experiments import constrained
from experiments import dry_run as dry_runs
from experiments import workdir as workdirs
from experiments.display import Display
from experiments.loops import evaluation
from experiments.loops import feasibility
from experiments.loops import metrics_file
from experiments.loops import online
from qempo_jax.data import prompts
from qempo_jax.errors import InputError
from qempo_jax.evaluation import report
from qempo_jax.evaluation import summary
from qempo_jax.rewards import normal_form
from qempo_jax.rewards import words


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains and evaluates every method and seed that is not done yet, then writes the report."""
  if "methods" not in config:
    raise InputError("this config holds one method; give one of several, such as configs/demo.py")
  if unknown := [method for method in config.methods if method not in config]:
    raise InputError(
      f"config.methods names {unknown[0]!r}, which has no config of its own; choose of grpo, qempo_kl, qempo"
    )
  constrained.check_names(config)
  shared = config.qempo_kl
  if not dry_run:
    workdir = workdirs.open_workdir(workdir, config)
  policy = builders.policy(shared)
  print(feasibility.check(shared, policy))
  if dry_run:
    for method in config.methods:
      print(f"{method}:\n{dry_runs.describe(config[method], policy)}")
    return
  (workdir / "samples").mkdir(exist_ok=True)
  evaluate = evaluation.Evaluator(shared, policy, evaluation_rows(shared), builders.reward(shared))

  run_once(workdir, "base", lambda: evaluate(policy.params, method="base", seed=config.seeds[0]))
  for seed in config.seeds:
    for method in config.methods:
      of_seed = config[method].copy_and_resolve_references()
      of_seed.seed = seed
      name = run_name(method, seed)
      run_once(workdir, name, functools.partial(train_and_sample, of_seed, method, workdir / name, policy, evaluate))

  index = write_report(config, workdir)
  print(f"Report: {index.resolve()}")


def run_name(method: str, seed: int) -> str:
  """Names the folder and the samples of one run."""
  return f"{method}-seed{seed}"


def train_and_sample(config, method, folder, policy, evaluate) -> list[dict]:
  """Trains one group of the config and samples the policy under that group's name."""
  folder.mkdir(exist_ok=True)
  with Display(config.steps, title=folder.name) as display:
    state = online.train(config, folder, policy, display)
  rows = evaluate(builders.as_policy(config)(state.params, policy.params), method=method, seed=config.seed)
  jax.tree.map(lambda leaf: leaf.delete(), state)
  return rows


def run_once(workdir: pathlib.Path, name: str, make) -> None:
  """Writes samples/NAME.jsonl, unless an earlier call did."""
  path = workdir / "samples" / f"{name}.jsonl"
  if path.exists():
    print(f"{name}: done before, kept {path}")
    return
  text = "".join(json.dumps(row) + "\n" for row in make())
  workdirs.write_atomically(path, text)


def evaluation_rows(config) -> list[prompts.Row]:
  """The prompts that are evaluated: splits of the task, or sources; held-out sets are asked for in the trained wordings."""
  splits = config.evaluation.splits
  if config.data.source == "countdown":
    return [row for split in splits for row in prompts.countdown_rows(split)]
  if config.data.source != "open_list":
    most = config.evaluation.max_prompts or None
    return [row | {"split": split.rpartition("/")[2]} for split in splits for row in prompts.load_rows(split)[:most]]
  sets, wordings = tuple(config.data.sets), tuple(config.data.wordings)
  chosen = {
    "train": {"sets": sets, "wordings": wordings},
    "validation_wordings": {"sets": sets},
    "heldout_wordings": {"sets": sets},
    "heldout_set": {"wordings": wordings},
  }
  return [row for split in splits for row in prompts.open_list_rows(split, **chosen[split])]


def write_report(config, workdir: pathlib.Path) -> pathlib.Path:
  """Summarises all samples, prints the table and writes the report."""
  names = ["base", *(run_name(method, seed) for method in config.methods for seed in config.seeds)]
  rows = [row for name in names for row in read_jsonl(workdir / "samples" / f"{name}.jsonl")]
  metrics = {
    method: metrics_file.read(workdir / run_name(method, config.seeds[0]) / metrics_file.NAME)
    for method in config.methods
  }
  budgets = {m: bound for m in config.methods if (bound := constrained.bound(config[m], "kl")) is not None}
  run = {
    "command": "python -m experiments.demo " + " ".join(sys.argv[1:]),
    "seeds": list(config.seeds),
    "words": words.DEFINITION,
    "same answer": normal_form.DEFINITION,
    "config": json.loads(config.to_json_best_effort()),
  }
  results = summary.summarise(rows, floor=config.qempo_kl.constraints.quality.bound, max_kl=budgets, run=run)
  index = report.write_report(workdir / "report", results, metrics, rows)
  Console().print(report.terminal_table(results))
  return index


def read_jsonl(path: pathlib.Path) -> list[dict]:
  """The objects of a JSON Lines file."""
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
  cli.run(
    main,
    description="Aligns a real small model three ways and compares quality and diversity.",
    example="python -m experiments.demo --config=configs/demo.py --workdir=runs/demo",
  )
