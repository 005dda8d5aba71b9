"""Cost of a checkpoint: seconds and bytes of saving and restoring, and the stall of training in steps.

  python -m experiments.benchmarks.checkpoints --config=configs/demo.py --workdir=runs/checkpoints

Steps alternate with and without an asynchronous save, on the state of the whole policy. A save's stall is the time of
its call, plus the extra time of the steps that run during the write.
"""

import json
import os
import pathlib
import statistics
import time

import jax

from experiments import build
from experiments import cli
from experiments import plan as plans
from qempo_jax.train.checkpoint import Checkpoints

ROUNDS = 3
STEPS_BETWEEN = 3  # steps after each save, and as many without a save


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Prints one JSON object."""
  config = config.qempo_kl if "qempo_kl" in config else config
  if dry_run:
    return
  run = build.run(config, check=False)
  state, shardings = plans.initial(run.first_state, run.policy.params, run.policy.mesh)
  run.batches.compile(shardings)

  def advance(state):
    started, index = time.monotonic(), int(state.step)
    state, metrics, _ = run.batches(state, index)
    jax.block_until_ready((state, metrics))
    return state, time.monotonic() - started

  load = os.getloadavg()[0]
  checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
  for _ in range(2):  # a packed batch of another width compiles again
    state, _ = advance(state)
  times = {"step": [], "step_beside_writing": [], "save_call": [], "write": []}
  for _ in range(ROUNDS):
    for name in ("step", "step_beside_writing"):
      if name == "step_beside_writing":
        started = time.monotonic()
        checkpoints.save(state, {})
        times["save_call"].append(time.monotonic() - started)
      for _ in range(STEPS_BETWEEN):
        state, seconds = advance(state)
        times[name].append(seconds)
    started = time.monotonic()
    checkpoints.save(state, {})
    checkpoints.wait()
    times["write"].append(time.monotonic() - started)
  started = time.monotonic()
  jax.block_until_ready(checkpoints.restore(state)[0].params)
  restore = time.monotonic() - started
  started = time.monotonic()
  shapes = build.plan(config, run.policy).abstract_state().params
  jax.block_until_ready(checkpoints.restore_params(shapes)[0])
  params_only = time.monotonic() - started
  checkpoints.close()
  files = [path for path in (workdir / "checkpoints").rglob("*") if path.is_file()]
  typical = {name: statistics.median(values) for name, values in times.items()}
  # Means, since a median would leave out the slow step right after a save.
  slower = STEPS_BETWEEN * (statistics.mean(times["step_beside_writing"]) - statistics.mean(times["step"]))
  print(
    json.dumps(
      {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": typical | {"restore": restore, "restore_params": params_only},
        "stall_of_a_step": {
          "call": typical["save_call"] / typical["step"],
          "call_and_slower_steps": (typical["save_call"] + slower) / typical["step"],
        },
        "all_seconds": times,
        "load_average": [load, os.getloadavg()[0]],
        "cores": os.cpu_count(),
      },
      indent=1,
    )
  )


if __name__ == "__main__":
  cli.run(
    main,
    description="Times checkpoints and the training steps during them.",
    example="python -m experiments.benchmarks.checkpoints --config=configs/demo.py --workdir=runs/checkpoints",
  )
