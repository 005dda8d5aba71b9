"""What a checkpoint costs: seconds and bytes of saving and restoring, and the share of training that a save stalls.

  python -m experiments.benchmarks.checkpoints --config=configs/demo.py --workdir=runs/checkpoints

Steps run alternately with and without an asynchronous save after them, on the state of the whole policy. A save's
stall is the time its call takes, plus what the steps beside the writing take longer than those without.
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
STEPS_BETWEEN = 3  # steps from one save to the next, and as many without any


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
  for _ in range(2):  # compiled twice, where a packed batch has another width
    state, _ = advance(state)
  found = {"step": [], "step_beside_writing": [], "save_call": [], "write": []}
  for _ in range(ROUNDS):
    for name in ("step", "step_beside_writing"):
      if name == "step_beside_writing":
        started = time.monotonic()
        checkpoints.save(state, {})
        found["save_call"].append(time.monotonic() - started)
      for _ in range(STEPS_BETWEEN):
        state, seconds = advance(state)
        found[name].append(seconds)
    started = time.monotonic()
    checkpoints.save(state, {})
    checkpoints.wait()
    found["write"].append(time.monotonic() - started)
  started = time.monotonic()
  jax.block_until_ready(checkpoints.restore(state)[0].params)
  restore = time.monotonic() - started
  started = time.monotonic()
  shapes = build.plan(config, run.policy).abstract_state().params
  jax.block_until_ready(checkpoints.restore_params(shapes)[0])
  params_only = time.monotonic() - started
  checkpoints.close()
  files = [path for path in (workdir / "checkpoints").rglob("*") if path.is_file()]
  typical = {name: statistics.median(values) for name, values in found.items()}
  # Means here: the step right after a save is the slow one, which a median would leave out.
  slower = STEPS_BETWEEN * (statistics.mean(found["step_beside_writing"]) - statistics.mean(found["step"]))
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
        "all_seconds": found,
        "load_average": [load, os.getloadavg()[0]],
        "cores": os.cpu_count(),
      },
      indent=1,
    )
  )


if __name__ == "__main__":
  cli.run(
    main,
    description="Times checkpoints beside training steps.",
    example="python -m experiments.benchmarks.checkpoints --config=configs/demo.py --workdir=runs/checkpoints",
  )
