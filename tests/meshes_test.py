"""Devices are arranged as the config says: slices along the axis that it names, four axes for long rows."""

from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

from configs import base
from experiments.configured import policy as build_policy
from qempo_jax import meshes
from qempo_jax.errors import InputError


class _Chip(SimpleNamespace):
  """A device that is not there; one is not another."""

  __hash__ = object.__hash__


def _pod(slices, each, platform="fake"):
  """Fake chips, out of order, that know the slice they are in."""
  make = lambda i: _Chip(
    id=i, slice_index=i // each, process_index=0, device_kind="fake", platform=platform, client=None
  )
  return [make(int(i)) for i in np.random.default_rng(0).permutation(slices * each)]


def _processes(count, each):
  return [_Chip(process_index=i // each, device_kind="cpu", platform="cpu", id=i) for i in range(count * each)]


@pytest.mark.parametrize(("axis", "dcn"), [(0, (4, 1, 1)), (1, (1, 4, 1)), (0, (4,)), (3, (1, 1, 1, 4))])
def test_slices_lie_along_the_named_axis(axis, dcn):
  shape = [1, 1, 1, 1] if axis == 3 else [1, 1, 1]
  shape[axis], shape[2] = 8, 4 if axis != 2 else 1
  mesh = meshes.make_mesh(tuple(shape), dcn=dcn, devices=_pod(4, 8))
  assert mesh.axis_names == ("data", "fsdp", "tensor", "sequence")[: len(shape)]
  found = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  along = np.moveaxis(found, axis, 0).reshape(8, -1)
  assert (along == along[:, :1]).all() and along[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  assert len({device.id for device in mesh.devices.flat}) == 32


def test_two_axes_may_have_slices():
  mesh = meshes.make_mesh((4, -1, 1), dcn=(2, 2), devices=_pod(4, 4))
  found = np.vectorize(lambda device: device.slice_index)(mesh.devices)[..., 0]
  np.testing.assert_array_equal(found, [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2)


def test_processes_are_slices_where_devices_know_of_none():
  mesh = meshes.make_mesh((2, 4, 1), dcn=(2, 1, 1), devices=_processes(2, 4))
  assert [[device.process_index for device in row] for row in mesh.devices[..., 0]] == [[0] * 4, [1] * 4]


@pytest.mark.parametrize(
  ("shape", "dcn", "message"),
  [
    ((8, 1, 4), (2, 1, 1), r"dcn_mesh=\(2, 1, 1\) does not fit 4 slices of devices: its product must be 4"),
    ((8, 1, 4), (1, 4, 1), "must divide it"),
    ((8, 1, 4), (1, 1, 1, 4), "one number for each axis"),
    ((8, 1, 2), (4, 1, 1), "product over .* must be 32"),
    ((8, 4), (4, 1), "product over .* must be 32"),
    ((-1, 64, 1), (4, 1, 1), "product over .* must be 32"),
  ],
)
def test_what_cannot_be_arranged_is_said(shape, dcn, message):
  with pytest.raises(InputError, match=message):
    meshes.make_mesh(shape, dcn=dcn, devices=_pod(4, 8))


def test_several_slices_of_tpus_must_be_named():
  with pytest.raises(InputError, match="does not fit 4 slices"):
    meshes.make_mesh((8, 1, 4), devices=_pod(4, 8, "tpu"))
  with mock.patch.object(jax, "make_mesh") as plain:
    meshes.make_mesh((8, 1, 4), devices=_pod(4, 8, "gpu"))  # whose nodes may count as slices, and need no naming
  assert plain.called


def test_slices_of_one_process_are_refused():
  with pytest.raises(InputError, match="does not fit 1 processes of devices"):
    meshes.make_mesh((8, 1, 1), dcn=(2, 1, 1))


def test_the_config_gives_the_mesh_and_its_rows_must_fit():
  config = base.get_config()
  config.compute.mesh = (1, 2, 1, -1)
  mesh = build_policy.mesh(config)
  assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 4} and mesh.size == jax.device_count()
  config.compute.bucket = 66
  with pytest.raises(InputError, match="compute.bucket a multiple of 4"):
    build_policy.mesh(config)
