"""Costs of a compiled program on one device, from its HLO text: bodies of loops count as often as they run.

XLA's own cost analysis counts a loop's body once, so that a scan over 32 blocks seems to cost one. Here each
computation is weighed by the product of the trip counts of the loops around it. Loops without a known trip count (the
sampler's, which may end early) are taken to run as often as the caller says.
"""

from collections.abc import Mapping
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s4": 1, "u4": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
_BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=(?:\w+\{)?\[(\d+),(\d+)\]<=")
# Instructions that move no bytes of their own.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")
_FREE += ("partition-id", "replica-id", "opt-barrier")


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str
  operation: str
  rest: str
  is_root: bool


class Costs(NamedTuple):
  """Of one run of the program on one device.

  Attributes:
    collectives: kind -> (times, bytes that leave a device).
    hbm_bytes: read and written in device memory.
    largest: (bytes, dtype[shape]) of the largest array that exists outside of a fusion.
    dcn_bytes: sent to other slices, over the data centre's network.
  """

  collectives: dict[str, tuple[int, float]]
  hbm_bytes: float
  largest: tuple[int, str]
  dcn_bytes: float = 0.0


def costs(text: str, *, devices: int, unknown_trips: float = 1) -> Costs:
  """Counts a compiled program.

  Collectives are counted as a ring would do them, (n - 1) / n of the whole array among n devices and twice that for an
  all-reduce. Memory traffic is each instruction's operands and result, of sliced or updated arrays only the slice;
  arrays that the compiler keeps in the chip's fast memory count for nothing.

  Args:
    text: `compiled.as_text()`.
    devices: in the mesh, for collectives over all of them.
    unknown_trips: mean trip count of loops whose count the compiler does not know.

  Returns:
    The counts.
  """
  computations, entry = _parse(text)
  weights = _weights(computations, entry, unknown_trips)
  found: dict[str, tuple[int, float]] = {}
  traffic, largest, between_slices = 0.0, (0, ""), 0.0
  for name, times in weights.items():
    shapes = {i.name: i.shape for i in computations[name]}
    for instruction in computations[name]:
      kind = instruction.operation.removesuffix("-start")
      if kind in COLLECTIVES and not instruction.operation.endswith("-done"):
        count, moved = found.get(kind, (0, 0.0))
        found[kind] = (count + times, moved + times * _moved(kind, instruction, shapes, devices))
      if instruction.operation == "send" and "_xla_megascale" in instruction.rest:
        between_slices += times * _largest(instruction.shape)[0]
      largest = max(largest, _largest(instruction.shape))
      traffic += times * _traffic(instruction, shapes, computations)
  found = {kind: (round(times), moved) for kind, (times, moved) in found.items()}
  return Costs(found, traffic, largest, between_slices)


def size(shape: str) -> int:
  """Bytes of a shape as HLO writes it, all parts of a tuple together; those in fast memory left out."""
  return sum(_size(*part) for part in _SHAPE.findall(shape))


def _size(dtype, dimensions, layout=""):
  if "S(" in layout or dtype not in _BYTES:
    return 0
  return _BYTES[dtype] * math.prod(int(d) for d in dimensions.split(",") if d)


def _largest(shape):
  parts = ((_size(*part), f"{part[0]}[{part[1]}]") for part in _SHAPE.findall(shape))
  return max(parts, default=(0, ""))


def _parse(text):
  computations, entry, current = {}, "", None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append(Instruction(found[2], found[3], found[4], found[5], bool(found[1])))
  return computations, entry


def _weights(computations, entry, unknown_trips):
  """Number of runs of each computation outside of fusions; a computation comes before those it calls."""
  weights: dict[str, float] = {}

  def visit(name, times):
    weights[name] = weights.get(name, 0) + times
    for instruction in computations.get(name, ()):
      if instruction.operation == "fusion" and "collective" not in instruction.name:
        continue
      if instruction.operation in ("reduce", "sort", "scatter", "all-reduce", "reduce-scatter", "map", "reduce-window"):
        continue
      inner = times
      if instruction.operation == "while":
        inner *= _trips(instruction, computations) or unknown_trips
      for called in _CALLS.findall(instruction.rest):
        if called in computations:
          visit(called, inner)

  visit(entry, 1)
  return weights


def _trips(loop, computations):
  """Of a loop that counts from 0 up to a constant, that constant; None for any other."""
  if known := _TRIPS.search(loop.rest):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
  found = {i.name: i for i in computations.get(condition[1], ())} if condition else {}
  for instruction in found.values():
    if instruction.is_root and instruction.operation == "compare" and "direction=LT" in instruction.rest:
      limits = (
        found[name].rest for name in _operands(instruction) if name in found and found[name].operation == "constant"
      )
      return next((int(limit.split(")")[0]) for limit in limits), None)
  return None


def _operands(instruction) -> list[str]:
  return re.findall(r"%([\w.\-]+)", instruction.rest.split("), ")[0])


def _moved(kind, instruction, shapes: Mapping[str, str], devices):
  if groups := _IOTA_GROUPS.search(instruction.rest):
    n = int(groups[2])
  elif groups := _GROUPS.search(instruction.rest):
    n = len(groups[1].split(","))
  else:
    n = devices
  parts = [
    _BYTES.get(d, 0) * math.prod(int(x) for x in s.split(",") if x) for d, s, _ in _SHAPE.findall(instruction.shape)
  ]
  whole = max(parts, default=0)
  if kind == "reduce-scatter":
    whole *= n
  if kind == "all-reduce":
    whole = sum(parts) if not instruction.operation.endswith("-start") else whole
    return 2 * whole * (n - 1) / n
  if kind == "collective-permute":
    return whole
  return whole * (n - 1) / n


def _traffic(instruction, shapes, computations):
  operation = instruction.operation
  if operation in _FREE or operation.endswith("-done") or operation.removesuffix("-start") in COLLECTIVES:
    return 0
  operands = [shapes.get(name, "") for name in _operands(instruction)]
  if operation == "dynamic-slice":
    return 2 * size(instruction.shape)
  if operation == "dynamic-update-slice":
    return 2 * size(operands[1]) if len(operands) > 1 else 0
  if operation == "fusion":
    called = _CALLS.search(instruction.rest)
    if called and called[1].startswith("async_collective"):
      return _overlapped_traffic(instruction, operands)
    return _fusion_traffic(instruction, operands, computations.get(called[1], ()) if called else ())
  return size(instruction.shape) + sum(size(shape) for shape in operands)


def _fusion_traffic(instruction, operands, body):
  """A fusion's result and operands; where it only slices or updates one of them, the slice alone."""
  names = {int(i.rest.split(")")[0]): i.name for i in body if i.operation == "parameter"}
  inner = {i.name: i for i in body}
  total, updated = 0, 0
  for place, shape in enumerate(operands):
    users = [i for i in body if names.get(place) in _operands(i)] if place in names else []
    if users and all(i.operation == "dynamic-slice" for i in users):
      total += sum(size(_bare(i.shape)) for i in users)
    elif users and all(i.operation == "dynamic-update-slice" and _operands(i)[0] == names[place] for i in users):
      for i in users:
        update = inner.get(_operands(i)[1])
        updated += size(shape)
        total += 2 * size(_bare(update.shape)) if update else 0
    else:
      total += size(shape)
  return total + max(size(instruction.shape) - updated, 0)


def _overlapped_traffic(instruction, operands):
  """Of work done while a collective is on its way: the collective's buffers only pass through, and count with it."""
  aliases = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", instruction.rest)
  passing = re.findall(r"\{(\d+)\}: \((\d+),", aliases[1]) if aliases else []
  results = [match[0] for match in _SHAPE.finditer(instruction.shape)]
  kept = [shape for place, shape in enumerate(results) if str(place) not in {result for result, _ in passing}]
  kept += [shape for place, shape in enumerate(operands) if str(place) not in {operand for _, operand in passing}]
  return sum(map(size, kept))


def _bare(shape):
  return re.sub(r"\{[^}]*\}", "", shape)
