"""Evaluates policies: `python -m experiments.evaluate --workdir=runs/qempo_kl`."""

import json
import pathlib
import sys

from rich.console import Console

from experiments import build
from experiments import cli
from experiments.compile import dry_run as dry_runs
from experiments.configured import constraints as build_constraints
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from experiments.measure import results as results_lib
from experiments.measure import sample_files
from experiments.measure import samples_once
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from qempo_jax.errors import InputError
from qempo_jax.evaluation import clusters
from qempo_jax.evaluation import report


def main(config, workdir: pathlib.Path, dry_run: bool, checkpoint: str | int | None = None) -> None:
  """Samples the reference and a checkpoint of the workdir, then scores all of samples/*.jsonl and writes the report."""
  build.check_one_method(config)
  e = config.evaluation
  if checkpoint is not None and not e.sample:
    raise InputError(f"evaluation.sample=False reads no checkpoint: leave out --checkpoint={checkpoint}, or sample")
  results_lib.check(e)
  if e.sample:
    of_samples, rows = samples_once.settings(config), build_data.evaluation_prompts(config)
    for split in dict.fromkeys(row["split"] for row in rows):
      clusters.of_rows([row for row in rows if row["split"] == split], e.cluster, split)  # refused before it samples
    reward = build_data.evaluation_reward(config, rows)
  if dry_run:
    if e.sample:
      print(
        f"Would draw {e.samples_per_prompt} samples of each of {len(rows)} prompts at temperature {e.temperature:g}."
      )
      policy = build_policy.policy(config)
      print(dry_runs.describe_sampling(build_sampling.sampling(of_samples, policy), policy))
    else:
      print(f"Would score {len(list((workdir / 'samples').glob('*.jsonl')))} files in {workdir / 'samples'}.")
    return
  workdir = workdirs.open_workdir(workdir, workdirs.of_the_run(config, workdir, ("export", "evaluation")), lock=False)
  (workdir / "samples").mkdir(exist_ok=True)
  words = samples_once.sample(of_samples, workdir, rows, reward, checkpoint) if e.sample else ""
  judge = lambda: reward if e.sample else build_data.evaluation_reward(config)
  found, notes = sample_files.read(workdir / "samples", judge, *e.reward_range[:1])
  whole = json.loads(config.to_json_best_effort())
  run = {
    "command": "python -m experiments.evaluate " + " ".join(sys.argv[1:]),
    "seed": e.seed,
    "temperature": e.temperature if e.sample else "of the files",
    **({"sampling": words} if words else {}),
    "encoder": "all-MiniLM-L6-v2",
    "parser": f"spaCy {e.parser}",
    "notes": notes,
    "config": {name: group for name, group in whole.items() if e.sample or name in ("evaluation", "reward")},
  }
  results = results_lib.results(config, found, run)
  workdirs.check_in_place(workdir)
  index = report.write_report(workdir / "report", results, training_metrics(config, workdir), found)
  Console().print(report.terminal_table(results))
  print(f"Report: {index.resolve()}")


def training_metrics(config, workdir: pathlib.Path) -> dict[str, list[dict]]:
  """The logged steps by method: of the workdir's own run, and of the runs of a demo in it, its first seed."""
  found = {}
  for path in sorted(workdir.glob(f"*-seed*/{metrics_file.NAME}")):
    found.setdefault(path.parent.name.rpartition("-seed")[0], metrics_file.read(path))
  if rows := metrics_file.read(workdir / metrics_file.NAME):
    found[build_constraints.label(config)] = rows
  return found


if __name__ == "__main__":
  cli.run(
    main,
    description="Measures quality, diversity and entropy of policies, certifies the floor and writes the report.",
    example="python -m experiments.evaluate --workdir=runs/qempo_kl",
    of_run=("evaluation",),
  )
