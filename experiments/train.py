"""Trains a policy: `python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl`."""

import pathlib

from experiments import builders
from experiments import cli
from experiments import workdir as workdirs
from experiments.display import Display
from experiments.loops import feasibility
from experiments.loops import online


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains, writes metrics.jsonl and the last state."""
  policy = builders.policy(config)
  report = feasibility.check(config, policy)
  print(report)
  if dry_run:
    return
  workdir = workdirs.open_workdir(workdir, config)
  with Display(config.steps, title=config.objective.method) as display:
    online.train(config, workdir, policy, display)
  print(f"Trained {config.steps} steps; metrics and checkpoints are in {workdir}")


if __name__ == "__main__":
  cli.run(
      main,
      description="Trains a policy online: GRPO (RLHF), QEMPO or QEMPO-KL by config.",
      example="python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl",
  )
