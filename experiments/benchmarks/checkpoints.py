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
import numpy as np

from experiments import builders
from experiments import cli
from experiments.loops import online
from experiments.loops import runs
from experiments.loops import sampling
from qempo_jax import sharding
from qempo_jax.train.checkpoint import Checkpoints

ROUNDS = 3
STEPS_BETWEEN = 3  # steps from one save to the next, and as many without any


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Prints one JSON object."""
  config = config.qempo_kl if "qempo_kl" in config else config
  if dry_run:
    return
  policy = builders.policy(config)
  optimizers, state, shardings = runs.initial(config, policy)
  sample = sampling.GroupSampler(policy, config, builders.training_rows(config))
  step, replay = online.compile_step(config, policy, optimizers, shardings), online.Replay(config)
  reward, as_policy = builders.reward(config), builders.as_policy(config)
  split = runs.split(policy.mesh, config.data.prompts_per_step)

  def advance(state):
    started, index = time.monotonic(), int(state.step)
    rows = sample.rows[: config.data.prompts_per_step]
    rng = jax.random.fold_in(state.rng, index)
    samples = sample(as_policy(state.params, policy.params), rows, rng, config.sampling.group_size)
    rewards = sampling.group_scores(reward, samples)
    batch = replay.make_batch(samples, rewards, np.random.default_rng(index))
    state, metrics = step(state, policy.params, sharding.place(batch, split))
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
  shapes = runs.trained_shapes(config, policy)
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
