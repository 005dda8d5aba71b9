"""Quality against diversity, methods x operating points x seeds: `python -m experiments.frontier --config=...`."""

import json
import pathlib
import sys
import time

from experiments import cli
from experiments.measure import frontier_runs as frontier
from experiments.run import workdir as workdirs
from qempo_jax.evaluation import frontier_page


def main(config, workdir: pathlib.Path, dry_run: bool, checkpoint: str | int | None = None) -> None:
  """Makes every run that has no result yet, each in its folder, then draws them all."""
  frontier.check(config, checkpoint)
  if not dry_run:
    workdir = workdirs.open_workdir(workdir, config)
    frontier.check_made(config, workdir, checkpoint)
  todo = frontier.missing(config, workdir)
  print(f"{len(frontier.planned(config))} runs, {len(todo)} of them to be made")
  if dry_run:
    return
  started = time.process_time(), time.monotonic()
  found = frontier.RUNNERS[config.runner](config, workdir, todo, checkpoint)
  results = {
    "command": "python -m experiments.frontier " + " ".join(sys.argv[1:]),
    "made_now": {
      "runs": len(todo),
      "cpu_seconds": round(time.process_time() - started[0], 1),
      "wall_seconds": round(time.monotonic() - started[1], 1),
    },
    "config": json.loads(config.to_json_best_effort()),
    "curves": found,
    "runs": frontier.read(config, workdir),
  }
  workdirs.check_in_place(workdir)
  index = frontier_page.write(workdir / "report", results)
  print(f"Frontier: {index.resolve()}")


if __name__ == "__main__":
  cli.run(
    main,
    description="Sweeps methods, operating points and seeds, and draws quality against diversity with intervals.",
    example="python -m experiments.frontier --config=configs/frontier_toy.py --workdir=runs/frontier_toy",
    of_run=(),
  )
