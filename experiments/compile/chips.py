"""Memory, peak rate and bandwidth of one chip of each TPU generation: the makers' figures, for rooflines."""

from typing import NamedTuple

from qempo_jax.errors import InputError


class Chip(NamedTuple):
  """One chip, as the compiler's device.

  Attributes:
    hbm: bytes of memory.
    flops: bfloat16 FLOP a second.
    hbm_bandwidth: bytes a second.
    link_bandwidth: bytes a second that leave the chip over all its links within a slice; what one axis of the mesh
      reaches is less.
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
