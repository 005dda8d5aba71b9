"""Parameters put where they belong as they are read, one stacked leaf after the other."""

from collections.abc import Callable

import jax
import numpy as np

from qempo_jax import sharding


def on_host(dtype=np.float32) -> Callable:
  """Makes a `place` for `tensor_names.assemble` that stacks NumPy arrays."""

  def place(path, shape, rows):
    leaf = np.empty(shape, dtype)
    for index, row in rows:
      leaf[... if index is None else index] = row
    return leaf

  return place


def onto_mesh(mesh: jax.sharding.Mesh, *, dtype=np.float32, rules=sharding.PARAM_RULES) -> Callable:
  """Makes a `place` for `tensor_names.assemble` that fills each device's own part of a leaf.

  Every tensor is read once. The host holds one of them and, of one stacked leaf, the parts that its own devices get;
  these parts are handed over before the next leaf is begun.

  Args:
    mesh: the devices.
    dtype: of the parameters.
    rules: which axes of the mesh a leaf is split over, by its path.

  Returns:
    place(path, shape, rows) -> jax.Array.
  """

  def place(path, shape, rows):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    where = sharding.tree_shardings(_nested(path, leaf), mesh, rules)
    for key in path:
      where = where[key]
    ranges = {_ranges(index, shape) for index in where.addressable_devices_indices_map(shape).values()}
    parts = {own: np.empty([stop - start for start, stop in own], dtype) for own in ranges}
    for index, row in rows:
      for own, part in parts.items():
        _fill(part, own, index, row)
    leaf = jax.make_array_from_callback(shape, where, lambda index: parts[_ranges(index, shape)])
    return jax.block_until_ready(leaf)  # copying goes on in the background otherwise, and keeps the parts alive

  return place


def _nested(path, leaf):
  for key in reversed(path):
    leaf = {key: leaf}
  return leaf


def _ranges(index, shape) -> tuple[tuple[int, int], ...]:
  return tuple(axis.indices(size)[:2] for axis, size in zip(index, shape))


def _fill(part: np.ndarray, own, index: int | None, row: np.ndarray) -> None:
  """Copies what the part has of a row: of block `index`, or of the whole leaf where that is None."""
  if index is None:
    part[...] = row[_slices(own)]
    return
  (start, stop), *rest = own
  if start <= index < stop:
    part[index - start] = row[_slices(rest)]


def _slices(ranges) -> tuple[slice, ...]:
  return tuple(slice(*pair) for pair in ranges)
