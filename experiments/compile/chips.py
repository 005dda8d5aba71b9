"""Memory, compute and bandwidth of accelerators: the makers' figures, for rooflines."""

from typing import NamedTuple

from qempo_jax.errors import InputError


class Chip(NamedTuple):
  """One chip, as the compiler's device; a GPU's card.

  Attributes:
    hbm: bytes of memory.
    flops: bfloat16 FLOP a second, dense, sums in float32; of a card without bfloat16 units, float32.
    hbm_bandwidth: bytes a second.
    link_bandwidth: bytes a second that leave the chip over all its links within a slice; what one axis of the mesh
      reaches is less. 0 for GPUs, whose links are not counted.
    source: the page that says so.
  """

  hbm: int
  flops: float
  hbm_bandwidth: float
  link_bandwidth: float
  source: str


# The link bandwidth is half of the bidirectional figure on the page: what a chip sends. v5e's and v6e's HBM is
# published in GB; their compiler counts 16 and 32 GiB less what it keeps for itself, which compiling finds.
CHIPS = {
  "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, "https://cloud.google.com/tpu/docs/v5e"),
  "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, "https://cloud.google.com/tpu/docs/v5p"),
  "v6e": Chip(32 * 2**30, 918e12, 1600e9, 400e9, "https://cloud.google.com/tpu/docs/v6e"),
}

_GB = 10**9
# NVIDIA's memory sizes are in GB; the driver keeps some of it.
GPUS = {
  "RTX 4060 8 GB": Chip(
    8 * _GB, 30e12, 272e9, 0.0, "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4060-4060ti/"
  ),
  "T4": Chip(16 * _GB, 8.1e12, 320e9, 0.0, "https://www.nvidia.com/en-us/data-center/tesla-t4/"),
  "L4": Chip(24 * _GB, 121e12, 300e9, 0.0, "https://www.nvidia.com/en-us/data-center/l4/"),
  "A100 40 GB": Chip(40 * _GB, 312e12, 1555e9, 0.0, "https://www.nvidia.com/en-us/data-center/a100/"),
  "H100": Chip(80 * _GB, 989e12, 3350e9, 0.0, "https://www.nvidia.com/en-us/data-center/h100/"),
  "H200": Chip(141 * _GB, 989e12, 4800e9, 0.0, "https://www.nvidia.com/en-us/data-center/h200/"),
}


def by_device_kind(kind: str) -> Chip | None:
  """The chip that JAX calls `kind`, such as "NVIDIA H200" or "TPU v5 lite"; None if it is not in the tables."""
  tpus = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
  }
  if kind in tpus:
    return CHIPS[tpus[kind]]
  return next((chip for name, chip in GPUS.items() if name.split()[0] in kind.upper().replace("-", " ").split()), None)


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as "v5p:8x8x4".

  Raises:
    InputError: the generation is not known.
  """
  generation = topology.partition(":")[0]
  if generation not in CHIPS or ":" not in topology:
    raise InputError(
      f"topology {topology!r} is not known; write one of {', '.join(CHIPS)}, then its shape, as in v5p:2x2x2"
    )
  return CHIPS[generation]
