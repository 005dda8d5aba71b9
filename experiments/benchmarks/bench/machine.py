"""Description of the machine, and the environment variables of every side's process."""

import importlib.metadata
import os
import pathlib
import platform

from experiments.benchmarks.bench import environments

# The same for all sides.
ENVIRONMENT = {
  "TOKENIZERS_PARALLELISM": "false",
  "HF_HUB_OFFLINE": "1",
  "JAX_PLATFORMS": "cpu",
  "CUDA_VISIBLE_DEVICES": "",
}
OWN = ("jax", "jaxlib", "flax", "optax", "numpy")


def describe() -> str:
  """Returns processor, cores, memory and system."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  return (
    f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
  )


def versions() -> dict[str, str]:
  """Returns the versions of our own and the peers' packages."""
  own = {name: importlib.metadata.version(name) for name in OWN}
  return own | {
    requirement.split("==")[0]: requirement.split("==")[1]
    for peer in environments.PEERS.values()
    for requirement in peer
  }


def _processor() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()
