"""The demo: base, GRPO and QEMPO-C on a real small model, compared at one quality floor."""

import functools
import json
import pathlib
import sys

import jax
from rich.console import Console

from experiments import build
from experiments import cli
from experiments import loop
from experiments.compile import dry_run as dry_runs
from experiments.configured import constraints as build_constraints
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from experiments.measure import sample_files
from experiments.measure import samples_once
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from experiments.run.display import Display
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
      f"config.methods names {unknown[0]!r}, which has no config of its own: add one as config.{unknown[0]}"
    )
  for method in config.methods:
    build.check_one_method(config[method])
  build_constraints.check_names(config)
  shared = with_floor(config)
  if not dry_run:
    workdir = workdirs.open_workdir(workdir, config)
  policy = build_policy.policy(shared)
  print(build.reference(shared, policy).check(*build_sampling.sampling(shared, policy)[:2]))
  if dry_run:
    for method in config.methods:
      print(f"{method}:\n{dry_runs.describe(build.plan(config[method], policy))}")
    return
  (workdir / "samples").mkdir(exist_ok=True)
  evaluate = build.evaluator(shared, policy, build_data.evaluation_rows(shared), build_data.reward(shared))

  of_base = functools.partial(evaluate, policy.params, method="base", exact=shared.evaluation.exact_base)
  samples_once.run_once(workdir, "base", lambda: of_base(seed=config.seeds[0]))
  for seed in config.seeds:
    for method in config.methods:
      of_seed = config[method].copy_and_resolve_references()
      of_seed.seed = seed
      name = samples_once.run_name(method, seed)
      samples_once.run_once(
        workdir, name, functools.partial(train_and_sample, of_seed, method, workdir / name, policy, evaluate)
      )

  index = write_report(config, workdir)
  print(f"Report: {index.resolve()}")


def with_floor(config):
  """The config of the last method that has a quality floor: its floor, prompts and evaluation are those of all."""
  found = [
    config[method] for method in config.methods if build_constraints.bound(config[method], "quality") is not None
  ]
  if not found:
    raise InputError("none of config.methods has a floor to compare at: set constraints.quality.bound of one")
  return found[-1]


def train_and_sample(config, method, folder, policy, evaluate) -> list[dict]:
  """Trains one group of the config and samples the policy under that group's name."""
  folder.mkdir(exist_ok=True)
  run = build.run(config, policy, check=False)
  with Display(run.steps, title=folder.name, constraints=run.constraints) as display:
    state = loop.train(run, folder, display)
  trained = build_policy.as_policy(config)(state.params, policy.params)
  rows = evaluate(trained, method=method, seed=run.seed)
  jax.tree.map(lambda leaf: leaf.delete(), state)
  return rows


def write_report(config, workdir: pathlib.Path) -> pathlib.Path:
  """Summarises all samples, prints the table and writes the report."""
  names = ["base", *(samples_once.run_name(method, seed) for method in config.methods for seed in config.seeds)]
  rows = [row for name in names for row in sample_files.of_file(workdir / "samples" / f"{name}.jsonl")]
  metrics = {
    method: metrics_file.read(workdir / samples_once.run_name(method, config.seeds[0]) / metrics_file.NAME)
    for method in config.methods
  }
  budgets = {m: bound for m in config.methods if (bound := build_constraints.bound(config[m], "kl")) is not None}
  run = {
    "command": "python -m experiments.demo " + " ".join(sys.argv[1:]),
    "seeds": list(config.seeds),
    "words": words.DEFINITION,
    "same answer": normal_form.DEFINITION,
    "config": json.loads(config.to_json_best_effort()),
  }
  floor = build_constraints.bound(with_floor(config), "quality")
  results = summary.summarise(rows, floor=floor, max_kl=budgets, run=run)
  index = report.write_report(workdir / "report", results, metrics, rows)
  Console().print(report.terminal_table(results))
  return index


if __name__ == "__main__":
  cli.run(
    main,
    description="Aligns a real small model by several methods and compares quality and diversity.",
    example="python -m experiments.demo --config=configs/demo.py --workdir=runs/demo",
  )
