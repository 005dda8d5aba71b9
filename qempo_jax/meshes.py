"""Device meshes over (data, fsdp, tensor[, sequence]), on one slice or several."""

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
SEQUENCE = "sequence"  # Optional fourth axis, which shards the tokens of a row.


def make_mesh(
  shape: Sequence[int] = (-1, 1, 1), *, dcn: Sequence[int] = (), devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh of devices over (data, fsdp, tensor) or (data, fsdp, tensor, sequence).

  Slices are pods or parts of pods. They are joined by a data-centre network (DCN), slower than the links within each.
  Along an axis with s slices the mesh has s equal parts, each in one slice.

  Args:
    shape: devices along each axis, all slices together; one -1 means all remaining devices.
    dcn: slices along each axis; missing axes have one. If devices have no slice index, each process counts as a slice.
    devices: devices to arrange; None: all devices of all processes.

  Returns:
    The mesh.

  Raises:
    InputError: the devices do not fit the shape.
  """
  devices = jax.devices() if devices is None else list(devices)
  names = (*AXES, SEQUENCE)[: len(shape)]
  sizes = _sizes(tuple(shape), len(devices))
  slices = (*dcn, *(1,) * (len(sizes) - len(dcn)))
  # Off TPUs, mesh construction ignores slices.
  one_slice = _slices(devices) <= 1 or devices[0].platform != "tpu"
  if math.prod(slices) == 1 and one_slice:
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
  return Mesh(_over_slices(sizes, slices, devices), names, axis_types=(AxisType.Auto,) * len(sizes))


def _sizes(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
  known = math.prod(size for size in shape if size > 0)
  sizes = tuple(count // known if size == -1 else size for size in shape)
  if len(shape) not in (3, 4) or min(sizes) < 1 or math.prod(sizes) != count:
    raise InputError(
      f"compute.mesh={shape} does not fit {count} devices: its product over {AXES}, optionally with"
      f" {SEQUENCE!r}, must be {count}"
    )
  return sizes


def _over_slices(sizes: tuple[int, ...], slices: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """Devices in the mesh's shape, each block of it in one slice."""
  by_process = _slices(devices) <= 1
  count = len({device.process_index for device in devices}) if by_process else _slices(devices)
  unit = "processes" if by_process else "slices"
  if len(slices) != len(sizes) or math.prod(slices) != count:
    raise InputError(
      f"compute.dcn_mesh={slices} does not fit {count} {unit} of devices: its product must be {count}, with one"
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
    raise InputError(f"{within} devices of compute.mesh={sizes} do not fit a slice: {error}") from error


def _slices(devices: Sequence[Any]) -> int:
  """Number of slices of the devices; 0 if they have no slice index."""
  return len({device.slice_index for device in devices if getattr(device, "slice_index", None) is not None})
