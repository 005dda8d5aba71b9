"""Seconds to compile the programs of a demo's runs, uncached and in their largest shapes; no weights are read.

python -m experiments.benchmarks.compile_seconds --config=configs/demo.py
"""

import argparse
import pathlib
import time

import jax

from experiments import build
from experiments import cli
from experiments.compile import programs
from experiments.configured import policy as build_policy


def main() -> None:
  """Prints one line per program."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", type=pathlib.Path, required=True)
  whole = cli.complete_config(parser.parse_args().config, [])
  jax.config.update("jax_enable_compilation_cache", False)
  runs = {name: whole[name] for name in whole if hasattr(whole[name], "compute")} or {"": whole}
  for name, config in runs.items():
    for program in programs.of_plan(build.plan(config, build_policy.abstract_policy(config, jax.devices()[:1]))):
      started = time.monotonic()
      lowered = program.jitted.lower(*program.arguments, **program.options)
      traced = time.monotonic()
      lowered.compile()
      print(
        f"{name} {program.name}: traced in {traced - started:.1f} s, compiled in {time.monotonic() - traced:.1f} s",
        flush=True,
      )


if __name__ == "__main__":
  main()
