"""Memory, compute and bandwidth of accelerators, the makers' figures, for rooflines; slices by shape and product name."""

import re
from typing import NamedTuple

from qempo_jax.errors import InputError


class Chip(NamedTuple):
  """One chip, as the compiler's device; a GPU's card.

  Attributes:
    hbm: bytes of memory.
    flops: bfloat16 FLOP a second, dense, sums in float32; of a card without bfloat16 units, float32.
    hbm_bandwidth: bytes a second.
    link_bandwidth: bytes a second that leave the chip over all its links within a slice; what one axis of the mesh
      reaches is less. Of GPUs, one direction of NVLink; 0 without it.
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
  "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9, "https://cloud.google.com/tpu/docs/v6e"),
}
_GB = 10**9
_NVIDIA = "https://www.nvidia.com/en-us/"
# GPUs, of one machine each. NVIDIA's memory sizes are in GB; the driver keeps some of it. FLOP are without sparsity.
GPUS = {
  "rtx-4060": Chip(8 * _GB, 30e12, 272e9, 0.0, f"{_NVIDIA}geforce/graphics-cards/40-series/rtx-4060-4060ti/"),
  "t4": Chip(16 * _GB, 8.1e12, 320e9, 0.0, f"{_NVIDIA}data-center/tesla-t4/"),
  "l4": Chip(24 * _GB, 121e12, 300e9, 0.0, f"{_NVIDIA}data-center/l4/"),
  "a100-40gb": Chip(40 * _GB, 312e12, 1555e9, 300e9, f"{_NVIDIA}data-center/a100/"),
  "a100": Chip(80 * _GB, 312e12, 2039e9, 300e9, f"{_NVIDIA}data-center/a100/"),
  "h100": Chip(80 * _GB, 989e12, 3350e9, 450e9, f"{_NVIDIA}data-center/h100/"),
  "h200": Chip(141 * _GB, 989e12, 4800e9, 450e9, f"{_NVIDIA}data-center/h200/"),
}
# Chips of a slice -> its shape. v5p is sold by TensorCores, two a chip; v5e and v6e by chips.
_SHAPES = {
  "v5p": {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
  },
  "v5e": {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
}  # fmt: skip
_SHAPES["v6e"] = _SHAPES["v5e"]
_CORES = {"v5p": 2}
_PRODUCT = re.compile(r"(v5p|v5e|v6e|v5litepod)-(\d+)")


def topology_of(text: str) -> str:
  """A topology by its shape, from the same or from a product name: "v5p-64" is "v5p:2x4x4", "h100:8" stays.

  Raises:
    InputError: neither chip nor shape is known.
  """
  kind, _, shape = text.partition(":")
  if shape and (kind in CHIPS or (kind in GPUS and shape.isdigit() and int(shape))):
    return text
  if match := _PRODUCT.fullmatch(text):
    kind = match[1].replace("v5litepod", "v5e")
    sizes = {count * _CORES.get(kind, 1): shape for count, shape in _SHAPES[kind].items()}
    if shape := sizes.get(int(match[2])):
      return f"{kind}:{shape}"
    raise InputError(f"there is no {text}: {kind} is sold as {', '.join(f'{kind}-{size}' for size in sizes)}")
  raise InputError(
    f"topology {text!r} is not known; write one of {', '.join(CHIPS)} with its shape, as in v5p:2x2x2, a product name such as"
    f" v5p-64, or GPUs of one machine: {', '.join(f'{name}:8' for name in GPUS)}"
  )


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
  words = set(kind.lower().replace("-", " ").split())
  return next((chip for name, chip in GPUS.items() if words.issuperset(name.split("-"))), None)


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as "v5p:8x8x4", "v5p-64" or "h100:8".

  Raises:
    InputError: the generation is not known.
  """
  return (CHIPS | GPUS)[topology_of(topology).partition(":")[0]]


def gpus(topology: str) -> int:
  """Number of GPUs of a topology; 0 for TPUs."""
  kind, _, shape = topology_of(topology).partition(":")
  return int(shape) if kind in GPUS else 0
