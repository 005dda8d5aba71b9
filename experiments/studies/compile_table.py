"""Compiles the paper configs for their slices, one at a time, and updates the table of docs/pods.md.

  python -m experiments.studies.compile_table [--only=TEXT] [--table] [--recount]

Entries in the results file are not compiled again; remove one there to recompile it. `--only` selects the entries with
that text in their name. `--table` compiles nothing and writes the page from the file. `--recount` traces the compiled
entries again for their FLOP, and compiles nothing.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from configs.paper import models
from experiments import cli
from experiments import compile_check
from experiments.compile import chips
from qempo_jax.errors import InputError
from qempo_jax.paths import write_atomically

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "compile_check.json"
PAGE = ROOT / "docs" / "pods.md"
START, END = "<!-- compile_check: made by experiments/studies/compile_table.py -->", "<!-- compile_check ends -->"
TASKS = ("offline_ultrafeedback", "online_gsm8k", "online_math")
LONG_TASKS = ("online_math_long",)
# All methods of a task compile to one program except for scalars, so one method represents them.
METHOD = "qempo_kl"
# Besides each model's own slice: the smallest model on the smallest slice.
FURTHER = (
  ("offline_ultrafeedback", "qwen2.5-0.5b", "v5e:2x2"),
  ("online_gsm8k", "qwen2.5-0.5b", "v5e:2x2"),
)
HEAD = (
  "| config | slice | program | GiB of a chip | parameters, optimizer, reference, temporary | links, GiB | TFLOP"
  " | at least, s | MFU at most |\n|---|---|---|---|---|---|---|---|---|"
)
GIB = 2**30


def entries() -> list[tuple[str, str]]:
  """Returns (config with its argument, slice) of every row of the table."""
  tasks = lambda model: LONG_TASKS if model.long else TASKS
  pairs = [(task, name, model.topology) for name, model in models.MODELS.items() for task in tasks(model)]
  return [(f"configs/paper/{task}.py:{model},{METHOD}", topology) for task, model, topology in (*FURTHER, *pairs)]


def results() -> dict[str, Any]:
  """Reads the compiled programs: "CONFIG on SLICE" -> its programs."""
  return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def table(compiled: dict[str, Any]) -> str:
  """Formats the Markdown table of all entries; entries missing in `compiled` are marked."""
  lines = [HEAD]
  for config, topology in entries():
    start = f"| `{config.removeprefix('configs/paper/')}` | {topology} |"
    entry = compiled.get(f"{config} on {topology}")
    if entry is None:
      lines.append(f"{start} not compiled |" + " |" * 6)
    lines += [f"{start} {_cells(program)} |" for program in (entry or {}).get("programs", ())]
  return "\n".join(lines)


def page(text: str, compiled: dict[str, Any]) -> str:
  """Replaces the table between the page's two marks."""
  before, rest = text.split(START)
  return f"{before}{START}\n\n{table(compiled)}\n\n{END}{rest.split(END)[1]}"


def recounted(config: str, topology: str, entry: dict[str, Any]) -> dict[str, Any]:
  """An entry with the FLOP that `compile_check.count` finds now, and what follows from them."""
  flops = compile_check.count(cli.complete_config(ROOT / config, []), topology)
  chip = chips.chip_of(topology)
  found = []
  for program in entry["programs"]:
    seconds = flops[program["name"]] / chip.flops
    bound = max(seconds, program["memory_seconds"], program["link_seconds"])
    changed = {"flops": flops[program["name"]], "compute_seconds": seconds, "seconds": bound}
    found.append(program | changed | {"utilisation": seconds / bound if bound else 0.0})
  return entry | {"programs": found}


def _cells(program: dict[str, Any]) -> str:
  if program["error"]:
    return f"{program['name']} | does not fit: {program['error'].replace('|', '/')} |" + " |" * 4
  gib = lambda name: f"{program[name] / GIB:.2f}"
  fits = "" if program["fits"] else ": does not fit"
  cells = [
    program["name"],
    f"{gib('total')} of {program['capacity'] / GIB:.0f}{fits}",
    ", ".join(gib(name) for name in ("params", "optimizer", "reference", "temporary")),
    f"{sum(size for _, size in program['collectives'].values()) / GIB:.2f}",
    f"{program['flops'] / 1e12:.1f}",
    f"{program['seconds']:.2f}",
    f"{program['utilisation']:.0%}",
  ]
  return " | ".join(cells)


def main(argv=None) -> int:
  """Compiles the missing entries, and writes file and page after each; returns 1 if a program does not fit."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", default="", help="text in the entry's name, such as qwen2.5-0.5b or v5e")
  parser.add_argument("--table", action="store_true", help="compile nothing")
  parser.add_argument("--recount", action="store_true", help="count the FLOP of compiled entries anew, by tracing")
  arguments = parser.parse_args(argv)
  compiled = results()
  for config, topology in entries():
    name = f"{config} on {topology}"
    if arguments.recount and name in compiled and arguments.only in name:
      print(f"{name} ...", flush=True)
      compiled = results() | {name: recounted(config, topology, compiled[name])}
      write_atomically(RESULTS, json.dumps(compiled, indent=1) + "\n")
    if arguments.table or arguments.recount or name in compiled or arguments.only not in name:
      continue
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    try:
      reports = compile_check.check(cli.complete_config(ROOT / config, []), topology)
    except InputError as error:
      print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
      return 2
    programs = [report.to_json() for report in reports]
    entry = {"programs": programs, "compile_seconds": round(time.monotonic() - started)}
    compiled = results() | {name: entry}  # another process may have added entries
    write_atomically(RESULTS, json.dumps(compiled, indent=1) + "\n")
  write_atomically(PAGE, page(PAGE.read_text(encoding="utf-8"), compiled))
  return 0 if all(program["fits"] for entry in compiled.values() for program in entry["programs"]) else 1


if __name__ == "__main__":
  sys.exit(main())
