"""Seconds of offline steps with `offline.pairs_per_row` pairs per packed row, compared with one pair per row.

  python -m experiments.benchmarks.shared_rows --config=configs/offline_dpo.py --config.offline.pairs_per_row=4
      --config.offline.pairs=source --config.data.source=jsonl:pairs.jsonl.gz --config.steps=6 --workdir=runs/shared_rows

Both layouts take the same batches in turn, after a first pass that compiles; `workdir/shared_rows.json` keeps every
step.
"""

import json
import pathlib
import statistics
import time

import jax

from experiments import build
from experiments import cli
from experiments import plan as plans
from experiments.batches import pairs
from experiments.benchmarks.bench import machine
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from qempo_jax.data import pair_tokens
from qempo_jax.errors import InputError


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Times `config.steps` batches in both layouts, prints a line for each, and writes all times."""
  if config.offline.pairs_per_row < 2:
    raise InputError(
      "this compares several pairs per row with one: set config.offline.pairs_per_row to at least 2, such as 4"
    )
  if dry_run:
    return
  policy = build_policy.policy(config)
  encoded = build_data.encoded(config, policy, build_data.pairs(config, policy.tokenizer))
  plan, batches = build.plan(config, policy), {}
  for per_row in (1, config.offline.pairs_per_row):
    planned = plan._replace(pairs=plan.pairs._replace(per_row=per_row, measure_every=0))
    batches[per_row] = pairs.Pairs(planned, encoded, encode=None, measure=None, cached=False, chosen_fall=0.0)
    batches[per_row].prepare(workdir, print)
  state, shardings = plans.initial(plan.first_state, policy.params, policy.mesh)
  step, frozen = pairs.compile_step(plan, shardings), policy.params if plan.adapters else None
  seconds, padding = {per_row: [] for per_row in batches}, {per_row: [] for per_row in batches}
  for timed in (False, True):
    for index in range(plan.steps):
      for per_row, made in batches.items():
        batch, placed = made.make(index)
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, placed, frozen))
        if timed:
          seconds[per_row].append(time.perf_counter() - started)
          padding[per_row].append(pair_tokens.padding_share(batch.packed))
  for per_row, times in seconds.items():
    share = statistics.mean(padding[per_row])
    print(f"{per_row} pairs per row: {statistics.mean(times):.2f} s per step, padding {share:.0%}")
  saved = {"seconds": seconds, "padding": padding, "machine": machine.describe(), "jax": jax.__version__}
  (workdir / "shared_rows.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  cli.run(
    main,
    description="Times offline steps with several pairs per row and with one.",
    example="python -m experiments.benchmarks.shared_rows --config=configs/offline_dpo.py"
    " --config.offline.pairs_per_row=4 --workdir=runs/shared_rows",
  )
