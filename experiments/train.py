"""Trains a policy: `python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl`."""

import pathlib

from experiments import builders
from experiments import cli
from experiments import constrained
from experiments import distributed
from experiments import dry_run as dry_runs
from experiments import offline_builders
from experiments import workdir as workdirs
from experiments.display import Display
from experiments.loops import feasibility
from experiments.loops import offline
from experiments.loops import online
from experiments.loops import profiling
from experiments.loops import wandb_log


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains on pairs where config.offline.loss names a loss, else online; writes metrics.jsonl and the last state."""
  builders.check_one_method(config)
  on_pairs = config.offline.loss is not None
  lock = distributed.is_writer()  # one lock a run, which may be many processes
  workdirs.check_workdir(workdir, config, lock=lock)  # a mistake is said before the model is loaded
  wandb_log.check(config)
  profiling.check(config)
  offline_builders.objective(config) if on_pairs else builders.objective(config)
  policy = builders.policy(config)
  print((offline if on_pairs else feasibility).check(config, policy))
  if dry_run:
    print(dry_runs.describe(config, policy))
    return
  policy = builders.with_reference_in_its_place(config, policy)
  workdir = workdirs.open_workdir(workdir, config, lock=lock)
  with Display(config.steps, title=constrained.label(config)) as display:
    (offline if on_pairs else online).train(config, workdir, policy, display)
  print(f"Trained {config.steps} steps; metrics and checkpoints are in {workdir}")


if __name__ == "__main__":
  cli.run(
    main,
    description="Trains a policy: online (GRPO, QEMPO, QEMPO-KL), or on pairs (DPO, QEMPO-KL, NLL, ...) by config.",
    example="python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl",
  )
