"""Side-by-side benchmarks of ours and the peers, in turn and on the same tokens.

  make bench                                     # all cases, about an hour on two cores; a quiet machine, 20 GB free
  make bench ARGS=--only=offline,decode          # some cases; the others' results stay
  python -m experiments.benchmarks.bench.run --report   # only the tables and the plot, from the raw results

Each side is a separate process, and peers run in virtual environments that are made under the work folder. Raw results
go to docs/results/bench.json, tables to experiments/benchmarks/RESULTS.md, a plot to docs/figures/bench.png.
"""

import argparse
from collections.abc import Iterator
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys

from experiments.benchmarks.bench import arithmetic
from experiments.benchmarks.bench import cases
from experiments.benchmarks.bench import environments
from experiments.benchmarks.bench import machine
from experiments.benchmarks.bench import plot
from experiments.benchmarks.bench import report
from experiments.benchmarks.bench import workers
from qempo_jax.errors import InputError

RESULTS = workers.ROOT / "docs" / "results" / "bench.json"
TABLES = workers.ROOT / "experiments" / "benchmarks" / "RESULTS.md"
FIGURE = workers.ROOT / "docs" / "figures" / "bench.png"
AXES = ("tokens", "group", "vocabulary", "layers")


def main(arguments=None) -> None:
  """Runs the chosen cases in order; each is written as soon as it is done."""
  o = options(arguments)
  inputs = o.workdir / ("inputs_tiny" if o.tiny else "inputs")
  try:
    if not o.report:
      wanted = o.only.split(",") if o.only else [*(case.name for case in cases.ALL), "scaling"]
      chosen = cases.chosen([name for name in wanted if name != "scaling"], o.tiny)
      command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.bench.inputs",
        str(inputs),
        *(["tiny"] if o.tiny else []),
      ]
      subprocess.run(command, check=True, cwd=workers.ROOT)
      for case in chosen:
        for entry in run_case(case, o, inputs):
          keep(o.results, case.name, entry)
      if "scaling" in wanted:
        keep(o.results, "scaling", run_scaling(o, inputs))
    found = json.loads(o.results.read_text(encoding="utf-8"))
    o.tables.write_text(report.page(found), encoding="utf-8")
    plot.save(found, o.figure)
    print(report.page(found))
  except (InputError, subprocess.CalledProcessError) as error:
    sys.exit(f"bench: {error}")


def options(arguments):
  """Parses the command line."""
  names = ", ".join([*(case.name for case in cases.ALL), "scaling"])
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", help=f"cases, with commas between: {names}")
  parser.add_argument("--rounds", type=int, default=3, help="measured steps of each side")
  parser.add_argument("--without", default="", help="environments to leave out, with commas between: trl, tunix")
  parser.add_argument("--report", action="store_true", help="measure nothing")
  parser.add_argument("--tiny", action="store_true", help="a rehearsal with a tiny random model")
  parser.add_argument("--workdir", type=pathlib.Path, default=workers.ROOT / "runs" / "bench")
  for name, path in (("results", RESULTS), ("tables", TABLES), ("figure", FIGURE)):
    parser.add_argument(f"--{name}", type=pathlib.Path, default=path)
  o = parser.parse_args(arguments)
  o.workdir = o.workdir.resolve()
  return o


def run_case(case: cases.Case, o, inputs: pathlib.Path) -> Iterator[dict]:
  """Yields a case's results, with one match more each time and the best floor measured before, between and after them."""
  entry = header(case.title, o) | {"kind": case.kind, "shape": case.shape, "floor_goal": case.floor_goal, "matches": []}
  left_out = o.without.split(",")
  matches = [m for m in case.matches if m.other.environment not in left_out]
  if case.floor:
    entry["model"] = json.loads((inputs / "policy" / "config.json").read_text(encoding="utf-8"))
    dtypes = sorted({spec(case, m.ours, o, inputs)["dtype"] for m in matches})
    entry["floor"] = {dtype: floor(case, dtype, o, inputs) for dtype in dtypes}
  for match in matches:
    print(f"{case.name}: {match.ours.name} and {match.other.name} in turn ...", flush=True)
    sides = [start(case, side, o, inputs) for side in (match.ours, match.other)]
    try:
      found = workers.alternate(sides, warm_ups=match.warm_ups, rounds=match.rounds or o.rounds)
    finally:
      for side in sides:
        side.close()
    same(case.name, found[match.ours.name], found[match.other.name], match.tolerance)
    goals = {"goal": match.goal, "memory_goal": match.memory_goal}
    entry["matches"].append({"ours": match.ours.name, "other": match.other.name, "sides": found} | goals)
    for dtype, rates in entry.get("floor", {}).items():
      again = floor(case, dtype, o, inputs)
      entry["floor"][dtype] = {way: max(rates[way], again[way]) for way in ("forward", "trained")}
    entry["load_after"] = os.getloadavg()[0]
    yield entry


def spec(case: cases.Case, side: cases.Side, o, inputs) -> dict:
  """Returns the settings that a worker gets."""
  defaults = {"dtype": "float32", "checkpointing": False, "remat": "NONE"}
  settings = {"kind": case.kind, "shape": case.shape, "inputs": str(inputs), "tiny": o.tiny, "options": side.options}
  return settings | defaults | {name: value for name, value in side.options.items() if name in defaults}


def start(case: cases.Case, side: cases.Side, o, inputs) -> workers.Worker:
  """Starts the side's worker, and waits until it is ready."""
  python = environments.python_of(side.environment, o.workdir / "environments")
  log = o.workdir / "logs" / f"{case.name}-{re.sub(r'[^A-Za-z0-9]+', '_', side.name)}.log"
  return workers.Worker(side.name, python, side.module, spec(case, side, o, inputs), log, machine.ENVIRONMENT)


def floor(case: cases.Case, dtype: str, o, inputs) -> dict:
  """Operations per second of bare products at this case's rows: {"forward", "trained"}."""
  side = cases.Side(f"floor {dtype}", "ours", "floor")
  settings = {"inputs": str(inputs), "rows": case.floor, "dtype": dtype}
  log = o.workdir / "logs" / f"{case.name}-floor-{dtype}.log"
  worker = workers.Worker(side.name, sys.executable, side.module, settings, log, machine.ENVIRONMENT)
  try:
    return worker.step()
  finally:
    worker.close()


def run_scaling(o, inputs) -> dict:
  """Measures the points of every axis."""
  entry = header("our gradient step as one size grows", o) | {"axes": {}}
  case = cases.Case("scaling", "", "scaling", {}, ())
  for axis in AXES:
    print(f"scaling: {axis} ...", flush=True)
    worker = start(case, cases.Side(axis, "ours", "scaling", {"axis": axis}), o, inputs)
    try:
      worker.step()
      entry["axes"][axis] = worker.step()
    finally:
      worker.close()
  entry["load_after"] = os.getloadavg()[0]
  return entry


def same(name: str, ours: dict, other: dict, tolerance: float) -> None:
  """Checks that the two sides compute the same values, at the first step and, for training, after one update.

  Raises:
    InputError: they differ.
  """
  steps = lambda side: [step["check"] for step in (*side["warm_up"], *side["steps"])][:2]
  for at, (a, b) in enumerate(zip(steps(ours), steps(other), strict=True)):
    if not arithmetic.close(a, b, tolerance):
      raise InputError(f"{name}: the sides do not compute the same at step {at}: {a} and {b}")


def header(title: str, o) -> dict:
  """Returns title, date, command and machine of a measurement."""
  command = "python -m experiments.benchmarks.bench.run " + " ".join(sys.argv[1:])
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  facts = {"title": title, "date": now, "command": command.strip(), "rounds": o.rounds, "tiny": o.tiny}
  facts["tunables"] = os.environ.get("GLIBC_TUNABLES", "")
  return facts | {"machine": machine.describe(), "versions": machine.versions(), "load_before": os.getloadavg()[0]}


def keep(path: pathlib.Path, name: str, entry: dict) -> None:
  """Adds one case's results to the results file."""
  found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  path.write_text(json.dumps(found | {name: entry}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
