"""Trains a policy: `python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl`."""

import pathlib

from experiments import build
from experiments import cli
from experiments import loop
from experiments.compile import dry_run as dry_runs
from experiments.run import distributed
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from experiments.run.display import Display
from experiments.run.display import missed


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Trains on pairs where config.offline.loss names a loss, else online; writes metrics.jsonl and the last state."""
  build.check_one_method(config)
  lock = distributed.is_writer()  # one lock a run, which may be many processes
  workdirs.check_workdir(workdir, config, lock=lock)  # a mistake is said before the model is loaded
  build.saving(config).check(workdir)
  print(f"Loading {config.model.source} and the data, then compiling the sampler; this may take minutes", flush=True)
  run = build.run(config)
  print(run.line)
  if dry_run:
    print("Tracing the programs; nothing is trained", flush=True)
    print(dry_runs.describe(build.plan(config, run.policy)))
    return
  workdir = workdirs.open_workdir(workdir, config, lock=lock)
  with Display(run.steps, title=run.label, constraints=run.constraints) as display:
    state = loop.train(run, workdir, display)
  if unmet := missed(metrics_file.read(workdir / metrics_file.NAME), run.constraints):
    print(f"Not met on the training prompts: {', '.join(unmet)}")
  print(f"Trained {int(state.step)} steps; metrics and checkpoints are in {workdir}")


if __name__ == "__main__":
  cli.run(
    main,
    description="Trains a policy: online (GRPO, QEMPO, QEMPO-KL), or on pairs (DPO, QEMPO-KL, NLL, ...) by config.",
    example="python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl",
  )
