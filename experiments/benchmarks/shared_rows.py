"""Seconds of offline steps whose rows hold one pair each, beside the same with `offline.pairs_per_row` pairs a row.

  python -m experiments.benchmarks.shared_rows --config=configs/offline_dpo.py --config.offline.pairs_per_row=4
      --config.offline.pairs=source --config.data.source=jsonl:pairs.jsonl.gz --config.steps=6 --workdir=runs/shared_rows

Both ways take the same batches in turn, after a first pass that compiles; `workdir/shared_rows.json` keeps every step.
"""

import json
import pathlib
import statistics
import time

import jax

from experiments import builders
from experiments import cli
from experiments import offline_builders
from experiments.benchmarks.bench import machine
from experiments.loops import offline
from experiments.loops import pairs
from experiments.loops import runs
from qempo_jax import sharding
from qempo_jax.data import pair_tokens
from qempo_jax.errors import InputError


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Times `config.steps` batches both ways, prints a line for each, and writes all of it down."""
  if config.offline.pairs_per_row < 2:
    raise InputError("one pair a row is what this compares with: set config.offline.pairs_per_row, such as 4")
  policy = builders.policy(config)
  found = pairs.load(config, policy, workdir)
  if dry_run:
    return
  encoded = pairs.encode(config, policy, found)
  batches = {}
  for per_row in (1, config.offline.pairs_per_row):
    config.offline.pairs_per_row = per_row
    batches[per_row] = pairs.Batches(config, policy, encoded)
  optimizers, state, shardings = runs.initial(config, policy)
  step = offline.compile_step(config, policy, offline_builders.objective(config), optimizers, shardings)
  frozen = policy.params if builders.lora_config(config) else None
  seconds, padding = {per_row: [] for per_row in batches}, {per_row: [] for per_row in batches}
  for timed in (False, True):
    for index in range(config.steps):
      for per_row, made in batches.items():
        batch = made(index)
        placed = sharding.place(batch, runs.split(policy.mesh, config.offline.pairs_per_step))
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, placed, frozen))
        if timed:
          seconds[per_row].append(time.perf_counter() - started)
          padding[per_row].append(pair_tokens.padding_share(batch.packed))
  for per_row, times in seconds.items():
    share = statistics.mean(padding[per_row])
    print(f"{per_row} pairs a row: {statistics.mean(times):.2f} s a step, padding {share:.0%}")
  saved = {"seconds": seconds, "padding": padding, "machine": machine.describe(), "jax": jax.__version__}
  (workdir / "shared_rows.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  cli.run(
    main,
    description="Times offline steps with several pairs a row beside one.",
    example="python -m experiments.benchmarks.shared_rows --config=configs/offline_dpo.py"
    " --config.offline.pairs_per_row=4 --workdir=runs/shared_rows",
  )
