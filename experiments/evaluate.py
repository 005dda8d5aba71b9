"""Evaluates policies: `python -m experiments.evaluate --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl`."""

import json
import pathlib
import sys

from rich.console import Console

from experiments import builders
from experiments import cli
from experiments import constrained
from experiments import dry_run as dry_runs
from experiments import workdir as workdirs
from experiments.loops import evaluation_results
from experiments.loops import evaluation_samples
from experiments.loops import metrics_file
from experiments.loops import sample_files
from qempo_jax.errors import InputError
from qempo_jax.evaluation import report
from qempo_jax.rewards import registry


def main(config, workdir: pathlib.Path, dry_run: bool, checkpoint: str | int | None = None) -> None:
  """Samples the reference and a checkpoint of the workdir, then scores all of samples/*.jsonl and writes the report."""
  builders.check_one_method(config)
  e = config.evaluation
  if checkpoint is not None and not e.sample:
    raise InputError(f"evaluation.sample=False reads no checkpoint: leave out --checkpoint={checkpoint}, or sample")
  if e.sample:
    of_samples, rows = evaluation_samples.settings(config), evaluation_samples.prompt_rows(config)
  if dry_run:
    if e.sample:
      print(
        f"Would draw {e.samples_per_prompt} samples of each of {len(rows)} prompts at temperature {e.temperature:g}."
      )
      print(dry_runs.describe_sampling(of_samples, builders.policy(config)))
    else:
      print(f"Would score {len(list((workdir / 'samples').glob('*.jsonl')))} files in {workdir / 'samples'}.")
    return
  workdir = workdirs.open_workdir(workdir, workdirs.of_the_run(config, workdir, ("export", "evaluation")), lock=False)
  (workdir / "samples").mkdir(exist_ok=True)
  reward = lambda: registry.resolve(e.reward) if e.reward else builders.reward(config)
  if e.sample:
    evaluation_samples.sample(of_samples, workdir, rows, reward(), checkpoint)
  found, notes = sample_files.read(workdir / "samples", reward)
  run = {
    "command": "python -m experiments.evaluate " + " ".join(sys.argv[1:]),
    "seed": e.seed,
    "temperature": e.temperature if e.sample else "of the files",
    "encoder": "all-MiniLM-L6-v2",
    "parser": f"spaCy {e.parser}",
    "notes": notes,
    "config": json.loads(config.to_json_best_effort()),
  }
  results = evaluation_results.results(config, found, run)
  index = report.write_report(workdir / "report", results, training_metrics(config, workdir), found)
  Console().print(report.terminal_table(results))
  print(f"Report: {index.resolve()}")


def training_metrics(config, workdir: pathlib.Path) -> dict[str, list[dict]]:
  """The logged steps by method: of the workdir's own run, and of the runs of a demo in it, its first seed."""
  found = {}
  for path in sorted(workdir.glob(f"*-seed*/{metrics_file.NAME}")):
    found.setdefault(path.parent.name.rpartition("-seed")[0], metrics_file.read(path))
  if rows := metrics_file.read(workdir / metrics_file.NAME):
    found[constrained.label(config)] = rows
  return found


if __name__ == "__main__":
  cli.run(
    main,
    description="Measures quality, diversity and entropy of policies, certifies the floor and writes the report.",
    example="python -m experiments.evaluate --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl",
  )
