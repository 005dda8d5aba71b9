"""Devices as a mesh: (data, fsdp, tensor), and sequence for long rows; over several slices by a second shape."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import Mesh
import numpy as np

from qempo_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
SEQUENCE = "sequence"  # a fourth axis, over which the tokens of a row are split


def make_mesh(
  shape: Sequence[int] = (-1, 1, 1), *, dcn: Sequence[int] = (), devices: Sequence[Any] | None = None
) -> Mesh:
  """Devices as a mesh over (data, fsdp, tensor) or (data, fsdp, tensor, sequence).

  Slices are pods, or parts of them, that a data centre's network (DCN) joins, slower than the links within each. Along
  an axis with s slices, neighbours share a slice and the mesh's s equal parts lie in one slice each.

  Args:
    shape: devices along each axis, of all slices together; one -1 takes what is left.
    dcn: slices along each axis; axes that are left out have one. Where devices know no slices, each process counts as
      one.
    devices: those to arrange; None for all devices of all processes.

  Returns:
    The mesh.

  Raises:
    InputError: the devices at hand cannot be arranged so.
  """
  devices = jax.devices() if devices is None else list(devices)
  names = (*AXES, SEQUENCE)[: len(shape)]
  sizes = _sizes(tuple(shape), len(devices))
  slices = (*dcn, *(1,) * (len(sizes) - len(dcn)))
  in_one = (
    _slices(devices) <= 1 or devices[0].platform != "tpu"
  )  # the makers of other meshes do not ask where chips lie
  if math.prod(slices) == 1 and in_one:
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
  return Mesh(_over_slices(sizes, slices, devices), names, axis_types=(AxisType.Auto,) * len(sizes))


def _sizes(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
  known = math.prod(size for size in shape if size > 0)
  sizes = tuple(count // known if size == -1 else size for size in shape)
  if len(shape) not in (3, 4) or min(sizes) < 1 or math.prod(sizes) != count:
    raise InputError(
      f"compute.mesh={shape} does not arrange {count} devices; their product over {AXES}, and {SEQUENCE!r} where there"
      f" is a fourth, must be {count}"
    )
  return sizes


def _over_slices(sizes: tuple[int, ...], slices: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """Devices in the mesh's shape, each block of it in one slice."""
  by_process = _slices(devices) <= 1
  count = len({device.process_index for device in devices}) if by_process else _slices(devices)
  unit = "processes" if by_process else "slices"
  if len(slices) != len(sizes) or math.prod(slices) != count:
    raise InputError(
      f"compute.dcn_mesh={slices} does not arrange {count} {unit} of devices; its product must be {count}, with one"
      f" number for each axis of compute.mesh={sizes}"
    )
  if any(size % part for size, part in zip(sizes, slices, strict=True)):
    raise InputError(
      f"compute.mesh={sizes} counts the devices of all slices, so compute.dcn_mesh={slices} must divide it"
    )
  within = tuple(size // part for size, part in zip(sizes, slices, strict=True))
  try:
    return mesh_utils.create_hybrid_device_mesh(within, slices, devices, process_is_granule=by_process)
  except (ValueError, NotImplementedError, AssertionError) as error:
    raise InputError(f"{within} devices of compute.mesh={sizes} do not arrange a slice: {error}") from error


def _slices(devices: Sequence[Any]) -> int:
  """How many slices the devices lie in; 0 where they know of none."""
  return len({device.slice_index for device in devices if getattr(device, "slice_index", None) is not None})
