"""Memory and time that compiled programs take of each device, against its chip's: numbers, a roofline, a table."""

import dataclasses
import math
from typing import Any

import jax

from experiments.compile import hlo_costs
from experiments.compile.chips import Chip

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class ProgramReport:
  """One program on one device; bytes, FLOP and seconds of one call.

  Attributes:
    name: "online_step", "offline_step", "dual_step", "reshard" or "sampler".
    params: the policy's parameters; the sampler's as they are laid out for it, beside those of training.
    optimizer: the moments.
    reference: the frozen reference's parameters.
    temporary: activations, gradients and everything else that the program makes on its way.
    other: its remaining arguments and results, batch and samples among them.
    held: bytes kept in memory meanwhile, such as the optimizer while samples are drawn.
    total: sum of the entries above; results that take over donated arguments are counted once.
    capacity: of the chip.
    aliased: bytes of results that take over donated arguments.
    flops: matrix products of the program, divided by the devices.
    hbm_bytes: memory traffic.
    collectives: kind -> [times, bytes that leave the device], within a slice.
    dcn_bytes: that leave the device for other slices, over the data centre's network; the roofline leaves them out.
    largest: the largest array of the program, bytes and shape.
    compute_seconds: flops at the chip's peak.
    memory_seconds: traffic at its bandwidth.
    link_seconds: collectives over all its links.
    error: why there is no program; empty if there is one.
  """

  name: str
  params: int = 0
  optimizer: int = 0
  reference: int = 0
  temporary: int = 0
  other: int = 0
  held: int = 0
  total: int = 0
  capacity: int = 0
  aliased: int = 0
  flops: float = 0.0
  hbm_bytes: float = 0.0
  collectives: dict[str, list] = dataclasses.field(default_factory=dict)
  dcn_bytes: float = 0.0
  largest: tuple[int, str] = (0, "")
  compute_seconds: float = 0.0
  memory_seconds: float = 0.0
  link_seconds: float = 0.0
  error: str = ""

  @property
  def seconds(self) -> float:
    """The roofline: no faster than the slowest of the three."""
    return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

  @property
  def utilisation(self) -> float:
    """Share of the peak that the roofline allows."""
    return self.compute_seconds / self.seconds if self.seconds else 0.0

  @property
  def fits(self) -> bool:
    """True where it compiled and its memory is there."""
    return not self.error and self.total <= self.capacity

  def to_json(self) -> dict[str, Any]:
    """Plain values, the derived ones too."""
    return dataclasses.asdict(self) | {"seconds": self.seconds, "utilisation": self.utilisation, "fits": self.fits}


def report(
  name: str, compiled, chip: Chip, *, parts, held, devices: int, flops: float, unknown_trips: float
) -> ProgramReport:
  """Measures a compiled program.

  Args:
    name: of the program.
    compiled: result of `lowered.compile()`.
    chip: kind of the devices.
    parts: name -> pytree of arguments whose bytes on a device are told apart: params, optimizer, reference.
    held: pytree kept in memory meanwhile.
    devices: in the mesh.
    flops: of the whole program, all devices together.
    unknown_trips: iterations of a loop that may end early, on average.

  Returns:
    The report.
  """
  memory = compiled.memory_analysis()
  sizes = {part: device_bytes(tree) for part, tree in parts.items()}
  arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
  total = arguments + results - memory.alias_size_in_bytes + memory.temp_size_in_bytes
  total += memory.generated_code_size_in_bytes
  waiting = device_bytes(held)
  counted = hlo_costs.costs(compiled.as_text(), devices=devices, unknown_trips=unknown_trips)
  moved = sum(size for _, size in counted.collectives.values())
  return ProgramReport(
    name,
    **sizes,
    temporary=memory.temp_size_in_bytes,
    other=total - memory.temp_size_in_bytes - sum(sizes.values()),
    held=waiting,
    total=total + waiting,
    capacity=chip.hbm,
    aliased=memory.alias_size_in_bytes,
    flops=flops / devices,
    hbm_bytes=counted.hbm_bytes,
    collectives={kind: list(value) for kind, value in sorted(counted.collectives.items())},
    dcn_bytes=counted.dcn_bytes,
    largest=counted.largest,
    compute_seconds=flops / devices / chip.flops,
    memory_seconds=counted.hbm_bytes / chip.hbm_bandwidth,
    link_seconds=moved / chip.link_bandwidth,
  )


def device_bytes(tree) -> int:
  """Bytes of a tree of abstract arrays on one device."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      continue
    size = leaf.dtype.itemsize
    for dimension in leaf.sharding.shard_shape(leaf.shape):
      size *= dimension
    total += size
  return total


def product_flops(function, *arguments, unknown_trips: float = 1) -> float:
  """FLOP of the matrix products of a function, all devices together: loops count as often as they run.

  Args:
    function: traced, never run.
    *arguments: abstract arrays.
    unknown_trips: iterations of a while loop, on average.

  Returns:
    2 x multiplications; recomputation in the backward pass counts.
  """
  return _flops(jax.make_jaxpr(function)(*arguments).jaxpr, unknown_trips)


def _flops(jaxpr, unknown_trips) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      lhs = equation.invars[0].aval.shape
      inner = 1
      for axis in contracted:
        inner *= lhs[axis]
      total += 2.0 * inner * equation.outvars[0].aval.size
      continue
    if name == "cond":
      total += max(_flops(branch.jaxpr, unknown_trips) for branch in params["branches"])
      continue
    times = _times(name, params, unknown_trips)
    for value in params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += times * _flops(inner, unknown_trips)
  return total


def _times(name: str, params, unknown_trips: float) -> float:
  """Runs of an equation's inner program over all devices: a kernel's grid and shards count.

  The splash kernel skips masked blocks at run time, so it counts as one block.
  """
  if name == "scan":
    return params["length"]
  if name == "while":
    return unknown_trips
  if name == "shard_map":
    axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]  # by JAX's version
    return math.prod(params["mesh"].shape[axis] for axis in axes)
  if name == "pallas_call" and "splash" not in str(params.get("name_and_src_info")):
    return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
  return 1


def lines(program: ProgramReport) -> list[str]:
  """The report as text."""
  if program.error:
    return [f"{program.name}: DOES NOT FIT: {program.error}"]
  gib = lambda size: f"{size / GIB:.2f}"
  verdict = "fits" if program.fits else "DOES NOT FIT"
  found = [
    f"{program.name}: {gib(program.total)} of {gib(program.capacity)} GiB a device: {verdict}",
    f"  parameters {gib(program.params)}, optimizer {gib(program.optimizer)}, reference {gib(program.reference)},"
    f" activations and temporaries {gib(program.temporary)}, other {gib(program.other)},"
    f" waiting meanwhile {gib(program.held)} GiB;"
    f" donated {gib(program.aliased)} GiB; largest array {program.largest[1]}, {gib(program.largest[0])} GiB",
  ]
  for kind, (times, size) in program.collectives.items():
    found.append(f"  {kind}: {times} times, {gib(size)} GiB")
  if program.dcn_bytes:
    found.append(f"  between slices: {gib(program.dcn_bytes)} GiB")
  found.append(
    f"  {program.flops / 1e12:.2f} TFLOP: at least {program.seconds:.3f} s (compute {program.compute_seconds:.3f},"
    f" memory {program.memory_seconds:.3f}, links {program.link_seconds:.3f}); MFU at most {program.utilisation:.0%}"
  )
  return found
