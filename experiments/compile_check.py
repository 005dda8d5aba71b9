"""Compiles a config's programs for TPUs or GPUs on a machine without them, and says what they take.

  python -m experiments.compile_check --config=configs/paper/online_math.py:qwen2.5-7b,qempo_kl --topology=v5p:2x2x4

Shapes alone are compiled: no weights are read. For TPUs it needs libtpu beside JAX (`pip install jax[tpu]`), no TPU. Programs of GPUs
are compiled for as many devices of the CPU, whose attention has no fused kernel: their memory is an upper estimate.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys

# Read when JAX and libtpu are loaded: this process runs on the CPU and asks no metadata server.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held, so others may compile beside this

import jax

from experiments import build
from experiments import cli
from experiments import overrides
from experiments.compile import chips
from experiments.compile import dry_run as dry_runs
from experiments.compile import programs
from experiments.compile import report as compile_report
from experiments.configured import policy as build_policy
from qempo_jax.errors import InputError

EXAMPLE = (
  "python -m experiments.compile_check --config=configs/paper/online_math.py:qwen2.5-7b,qempo_kl --topology=v5p:2x2x4"
)


def check(config, topology: str) -> list[compile_report.ProgramReport]:
  """Compiles every program that the config's run uses, for a topology such as "v5p:2x2x4".

  The config's `compute.dcn_mesh` says of how many such slices.

  Raises:
    InputError: the topology, or the config for it, is wrong.
  """
  chip, found = chips.chip_of(topology), devices(topology, build_policy.slices(config))
  reports = []
  for program in programs.of_plan(plan(config, found)):
    print(
      f"compiling {program.name} for {len(found)} devices (minutes for large models) ...", file=sys.stderr, flush=True
    )
    try:
      compiled = program.jitted.lower(*program.arguments, **program.options).compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      reports.append(compile_report.ProgramReport(program.name, capacity=chip.hbm, error=_shortage(str(error))))
      continue
    reports.append(
      compile_report.report(
        program.name,
        compiled,
        chip,
        parts=program.parts,
        held=program.held,
        devices=len(found),
        flops=_flops(program),
        unknown_trips=program.trips,
      )
    )
  return reports


def count(config, topology: str) -> dict[str, float]:
  """FLOP of each program on one device, by name, traced and not compiled."""
  there = devices(topology, build_policy.slices(config))
  return {program.name: _flops(program) / len(there) for program in programs.of_plan(plan(config, there))}


def _flops(program: programs.Program) -> float:
  """FLOP of a program's products, all devices together."""
  function = functools.partial(program.jitted, **program.options)
  return compile_report.product_flops(function, *program.arguments, unknown_trips=program.trips)


def plan(config, devices):
  """The plan of the config's run on devices that need not exist, without weights."""
  build.check_one_method(config)
  policy = build_policy.with_reference_in_its_place(config, build_policy.abstract_policy(config, devices))
  return build.plan(config, policy)


def devices(topology: str, slices: int = 1):
  """The devices of so many slices of a topology, which need not exist.

  Raises:
    InputError: there is no such topology, or no compiler for it.
  """
  from jax.experimental import topologies

  if count := chips.gpus(topology):
    return _devices_of_cpu(count)
  several = {"num_slices": slices} if slices > 1 else {}
  try:
    return topologies.get_topology_desc(topology_name=chips.topology_of(topology), platform="tpu", **several).devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError, RuntimeError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(
      f"cannot compile for {topology} ({reason}); is libtpu installed (pip install 'jax[tpu]')?"
    ) from error


def _devices_of_cpu(count: int):
  """As many devices of the CPU, which stand for GPUs."""
  with contextlib.suppress(RuntimeError):  # JAX has made its devices already, which may be enough
    jax.config.update("jax_num_cpu_devices", count)
  found = jax.devices("cpu")
  if len(found) < count:
    raise InputError(f"this process has {len(found)} devices of the CPU for {count} GPUs: start a new one")
  return found[:count]


def _shortage(message: str) -> str:
  """The compiler's line about the memory shortage."""
  told = [line.strip() for line in message.splitlines() if "hbm" in line.lower() or "Ran out" in line]
  return (told or message.splitlines())[0][:300]


def main(argv=None) -> int:
  """Prints the reports; 0 if everything fits, 1 if not, 2 for a mistake in the arguments."""
  parser = cli.Parser(
    description="Compiles a config's programs for TPUs or GPUs on a machine without them, and says what they take.",
    epilog=f"example:\n  {EXAMPLE}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    usage="%(prog)s --config=FILE --topology=CHIPS [--json=FILE] [--dry_run] [--config.KEY=VALUE ...]",
    allow_abbrev=False,
  )
  say = parser.add_argument
  say("--config", type=pathlib.Path, required=True, metavar="FILE", help="config file, FILE.py or FILE.py:ARGUMENT")
  say(
    "--topology",
    required=True,
    metavar="CHIPS",
    help="of one slice, such as v5e:4x4, v5p:2x2x4 or v5p-32, or GPUs: h100:8",
  )
  say("--json", type=pathlib.Path, metavar="FILE", help="also write the reports there")
  say("--dry_run", action="store_true", help="build everything, print shapes, memory and config, then stop")
  try:
    arguments, extra = parser.parse_known_args(argv)
    config = cli.complete_config(arguments.config, extra)
    if arguments.dry_run:
      there = devices(arguments.topology, build_policy.slices(config))
      print(dry_runs.describe_programs(plan(config, there)))
      print(overrides.resolved(config))
      return 0
    reports = check(config, arguments.topology)
  except InputError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  for report in reports:
    # Traffic and collectives of a CPU's program are not those of a GPU's.
    print("\n".join(compile_report.lines(report)[: 2 if chips.gpus(arguments.topology) else None]))
  if arguments.json:
    found = {"config": str(arguments.config), "topology": arguments.topology}
    found["programs"] = [report.to_json() for report in reports]
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
  return 0 if all(report.fits for report in reports) else 1


if __name__ == "__main__":
  sys.exit(main())
