"""Trains a reward model: `python -m experiments.train_reward_model --config=configs/reward_model.py --workdir=DIR`."""

import pathlib

from experiments import builders
from experiments import cli
from experiments import dry_run as dry_runs
from experiments import reward_builders
from experiments import workdir as workdirs
from experiments.display import Display
from experiments.loops import profiling
from experiments.loops import reward_model
from experiments.loops import wandb_log


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains on preference pairs; writes metrics.jsonl, checkpoints, results.json and model/, which others load."""
  builders.check_one_method(config)
  workdirs.check_workdir(workdir, config)  # a mistake is said before the model is loaded
  wandb_log.check(config)
  profiling.check(config)
  model = reward_builders.model(config)
  parts = reward_builders.pairs(config, model.tokenizer)
  print(reward_model.check(config, model, parts))
  if dry_run:
    print(dry_runs.describe_reward_model(config, model))
    return
  workdir = workdirs.open_workdir(workdir, config)
  with Display(config.steps, title="reward model") as display:
    results = reward_model.train(config, workdir, model, parts, display)
  for part in ("validation", "heldout"):
    if part in results:
      found = results[part]
      low, high = found["accuracy_interval"]
      print(f"{part}: accuracy {found['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {found['pairs']} pairs")
  print(f"The model is in {workdir / 'model'}; as a reward: --config.reward.function=reward_model:{workdir}")


if __name__ == "__main__":
  cli.run(
    main,
    description="Trains a reward model on preference pairs (Bradley-Terry), and measures it on other prompts.",
    example="python -m experiments.train_reward_model --config=configs/reward_model.py --workdir=runs/reward_model",
  )
