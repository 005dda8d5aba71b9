"""Compiles a config's programs for a TPU topology on a machine without one, and says what they take.

  python -m experiments.compile_check --config=configs/paper/online_math.py:qwen2.5-7b,qempo_kl --topology=v5p:2x2x4

Shapes alone are compiled: no weights are read. It needs libtpu beside JAX (`pip install jax[tpu]`), no TPU.
"""

import argparse
import functools
import json
import os
import pathlib
import sys

# Read when JAX and libtpu are loaded: this process runs on the CPU and asks no metadata server.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax

from experiments import chips
from experiments import cli
from experiments import compile_programs
from experiments import compile_report
from qempo_jax.errors import InputError


def check(config, topology: str) -> list[compile_report.ProgramReport]:
  """Compiles every program that the config's run uses, for a topology such as "v5p:2x2x4".

  Raises:
    InputError: the topology, or the config for it, is wrong.
  """
  chip, found = chips.chip_of(topology), devices(topology)
  reports = []
  for program in compile_programs.programs(config, found):
    try:
      compiled = program.jitted.lower(*program.arguments, **program.options).compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      reports.append(compile_report.ProgramReport(program.name, capacity=chip.hbm, error=_shortage(str(error))))
      continue
    function = functools.partial(program.jitted, **program.options)
    reports.append(
        compile_report.report(
            program.name,
            compiled,
            chip,
            parts=program.parts,
            devices=len(found),
            flops=compile_report.product_flops(function, *program.arguments, unknown_trips=program.trips),
            unknown_trips=program.trips,
        )
    )
  return reports


def devices(topology: str):
  """The devices of a topology, which need not exist.

  Raises:
    InputError: there is no such topology, or no compiler for it.
  """
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError, RuntimeError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(f"cannot compile for {topology} ({reason}); is libtpu installed (pip install 'jax[tpu]')?") from error


def _shortage(message: str) -> str:
  """The compiler's line about what is missing."""
  told = [line.strip() for line in message.splitlines() if "hbm" in line.lower() or "Ran out" in line]
  return (told or message.splitlines())[0][:300]


def main(argv=None) -> int:
  """Prints the reports; 0 if everything fits, 1 if not, 2 for a mistake in the arguments."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("--config", type=pathlib.Path, required=True, help="config file, FILE.py or FILE.py:ARGUMENT")
  parser.add_argument("--topology", required=True, help="such as v5e:4x4, v5p:2x2x4 or v6e:4x4")
  parser.add_argument("--json", type=pathlib.Path, help="also write the reports there")
  arguments, extra = parser.parse_known_args(argv)
  try:
    reports = check(cli.complete_config(arguments.config, extra), arguments.topology)
  except InputError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  for report in reports:
    print("\n".join(compile_report.lines(report)))
  if arguments.json:
    found = {"config": str(arguments.config), "topology": arguments.topology}
    found["programs"] = [report.to_json() for report in reports]
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
  return 0 if all(report.fits for report in reports) else 1


if __name__ == "__main__":
  sys.exit(main())
