"""Measures the library on this machine's accelerator, within a time limit; no weights or data are needed.

  python -m experiments.benchmarks.device --seconds=600 --output=runs/device
  JAX_PLATFORMS=cpu python -m experiments.benchmarks.device --shapes=tiny --seconds=600

It needs the core dependencies, and matplotlib for plots. Each part is a process of its own, in order of worth: ceilings of the device,
sampler against scorer, attention and token statistics by each path, decoding, updates, GRPO. Estimated memory decides
what is tried. `device.jsonl` grows with each case; `device.md` and plots are written at the end.
"""

import argparse
from collections.abc import Mapping
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from experiments.benchmarks.device import page
from experiments.benchmarks.device import parts as catalogue
from experiments.benchmarks.device import schedule

KEPT_FREE = 0.92  # Of the free memory, the share that a process may take.


def free_memory(records: list[Mapping[str, Any]]) -> int | None:
  """Bytes that a process may take: by the GPU's driver, by JAX's limit, or of a CPU's memory; None: unknown."""
  device = page.ceilings(records)
  if device.get("platform") == "cpu":
    lines = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return int(KEPT_FREE * 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
  if (found := _gpu_memory()) is not None:
    return int(KEPT_FREE * found[0])
  return device.get("memory_limit")


def environment() -> dict[str, str]:
  """Environment of a measuring process: on a GPU, JAX may take most of the memory free now, not of the whole."""
  found = dict(os.environ)
  gpu = _gpu_memory()
  if gpu is not None and not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & found.keys():
    found["XLA_CLIENT_MEM_FRACTION"] = f"{KEPT_FREE * gpu[0] / gpu[1]:.3f}"
  return found


def _gpu_memory() -> tuple[int, int] | None:
  """(free, total) bytes of the first visible NVIDIA GPU; None if there is none."""
  first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
  query = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
  try:
    told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    free, total = (int(part) * 2**20 for part in told.splitlines()[0].split(","))
  except (OSError, subprocess.SubprocessError, ValueError, IndexError):
    return None
  return free, total


def main(argv=None) -> int:
  """Measures, and writes the page; 0 if the device itself could be measured."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  say = parser.add_argument
  say("--seconds", type=float, default=600.0, help="limit of the whole run")
  say("--shapes", choices=("full", "tiny"), default="full", help="tiny: small shapes, for a CPU")
  say("--only", default="", metavar="TEXT", help="parts with this text in their name")
  say("--output", type=pathlib.Path, default=pathlib.Path("runs/device"), metavar="DIR", help="folder of the results")
  say("--planted", action="store_true", help="add cases that raise, hang, crash or want too much memory")
  say("--list", action="store_true", help="print the cases with their estimated memory, and stop")
  arguments = parser.parse_args(argv)
  parts = list(
    catalogue.selected(catalogue.all_parts(tiny=arguments.shapes == "tiny", planted=arguments.planted), arguments.only)
  )
  if arguments.list:
    for part in parts:
      for case in part.cases:
        print(f"{case.needs / schedule.GIB:7.1f} GiB  {part.name}: {case.name}")
    return 0
  arguments.output.mkdir(parents=True, exist_ok=True)
  records, started = [], time.monotonic()
  told = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--output")]
  command = " ".join(["python -m experiments.benchmarks.device", *told])
  with open(arguments.output / "device.jsonl", "w", encoding="utf-8") as file:

    def record(found: dict[str, Any]) -> None:
      found["at_seconds"] = round(time.monotonic() - started, 1)
      records.append(found)
      file.write(json.dumps(found) + "\n")
      file.flush()
      told = found.get("reason") or ", ".join(_figures(found["result"]))
      print(f"{found['at_seconds']:6.0f} s  {found['part']}: {found['case']}: {found['status']}: {told}", flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
      schedule.run(
        parts,
        seconds=arguments.seconds,
        record=record,
        free_memory=lambda: free_memory(records),
        command=schedule.worker_command,
        environment=environment,
        start_seconds=8.0 if arguments.shapes == "tiny" else schedule.START_SECONDS,
      )
    except KeyboardInterrupt:
      print("interrupted: the page has what was measured until now", flush=True)
  plots = _plots(records, arguments.output)
  text = page.markdown(records, command=command, plots=plots)
  (arguments.output / "device.md").write_text(text, encoding="utf-8")
  for goal in page.goals(records):
    print(" | ".join(page.goal_row(goal)))
  print(f"{arguments.output / 'device.md'}")
  return 0 if page.of_kind(records, "ceilings") else 1


def _figures(result: Mapping[str, Any]):
  for name, value in result.items():
    yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _plots(records, folder: pathlib.Path) -> list[str]:
  try:
    from experiments.benchmarks.device import plots

    return plots.save(records, folder)
  except ImportError as error:
    print(f"no plots: {error}")
    return []


if __name__ == "__main__":
  sys.exit(main())
