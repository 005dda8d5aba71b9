"""Trains a policy: `python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl`."""

import pathlib

from experiments import builders
from experiments import cli
from experiments import offline_builders
from experiments import workdir as workdirs
from experiments.display import Display
from experiments.loops import feasibility
from experiments.loops import offline
from experiments.loops import online


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains on pairs where config.offline.loss names a loss, else online; writes metrics.jsonl and the last state."""
  on_pairs = config.offline.loss is not None
  workdirs.check_workdir(workdir, config)  # a mistake is said before the model is loaded
  if on_pairs:
    offline_builders.objective(config)
  policy = builders.policy(config)
  print((offline if on_pairs else feasibility).check(config, policy))
  if dry_run:
    return
  workdir = workdirs.open_workdir(workdir, config)
  with Display(config.steps, title=config.objective.method) as display:
    (offline if on_pairs else online).train(config, workdir, policy, display)
  print(f"Trained {config.steps} steps; metrics and checkpoints are in {workdir}")


if __name__ == "__main__":
  cli.run(
      main,
      description="Trains a policy: online (GRPO, QEMPO, QEMPO-KL), or on pairs (DPO, QEMPO-KL, NLL, ...) by config.",
      example="python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl",
  )
