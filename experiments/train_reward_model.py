"""Trains a reward model: `python -m experiments.train_reward_model --config=configs/reward_model.py --workdir=DIR`."""

import json
import pathlib

from experiments import build
from experiments import cli
from experiments import loop
from experiments.compile import dry_run as dry_runs
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from experiments.run.display import Display
from qempo_jax.paths import json_numbers
from qempo_jax.rewards import reward_model

RESULTS = "results.json"


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains on preference pairs; writes metrics.jsonl, checkpoints, results.json and model/, which others load."""
  build.check_one_method(config)
  workdirs.check_workdir(workdir, config)  # a mistake is said before the model is loaded
  build.saving(config).check(workdir)
  run, plan = build.reward_run(config)
  print(run.line)
  if dry_run:
    print(dry_runs.describe_reward_model(plan))
    return
  workdir = workdirs.open_workdir(workdir, config)
  with Display(run.steps, title=run.label) as display:
    results = train(run, workdir, display)
  for part in ("validation", "heldout"):
    if part in results:
      found = results[part]
      low, high = found["accuracy_interval"]
      interval = f"[{low:.3f}, {high:.3f}]" if low == low else "(no interval from so few prompts)"
      print(f"{part}: accuracy {found['accuracy']:.3f} {interval} on {found['pairs']} pairs")
  print(f"The model is in {workdir / 'model'}; as a reward: --config.reward.function=reward_model:{workdir}")


def train(run: loop.Run, workdir: pathlib.Path, display) -> dict:
  """Trains, measures and exports; returns what results.json holds."""
  trained = loop.train(run, workdir, display).params
  results = {"seed": run.seed, "steps": run.steps, **run.batches.same}
  results["prepared_seconds"] = run.batches.prepared_seconds
  rows = metrics_file.read(workdir / metrics_file.NAME)  # of all steps, those before a resumption too
  results["training_seconds"] = sum(row["seconds"] for row in rows)
  results |= run.batches.results(trained) | {"config": run.config}
  workdirs.write(workdir / RESULTS, json.dumps(json_numbers(results), indent=1, allow_nan=False) + "\n")
  run.batches.export(workdir / reward_model.EXPORT_FOLDER, trained)
  return results


if __name__ == "__main__":
  cli.run(
    main,
    description="Trains a reward model on preference pairs (Bradley-Terry), and measures it on other prompts.",
    example="python -m experiments.train_reward_model --config=configs/reward_model.py --workdir=runs/reward_model",
  )
