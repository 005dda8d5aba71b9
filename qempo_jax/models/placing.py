"""Builds parameters leaf by leaf as they are read, on the host or on a mesh."""

from collections.abc import Callable

import jax
import numpy as np

from qempo_jax import sharding


def on_host(dtype=np.float32) -> Callable:
  """`make_leaf` for `tensor_names.assemble` that stacks NumPy arrays."""

  def make_leaf(path, shape, rows):
    leaf = np.empty(shape, dtype)
    for index, row in rows:
      leaf[index] = row
    return leaf

  return make_leaf


def onto_mesh(mesh: jax.sharding.Mesh, *, dtype=np.float32, rules=sharding.PARAM_RULES) -> Callable:
  """`make_leaf` for `tensor_names.assemble` that fills each device's shard of a leaf.

  Every tensor is read once. The host holds one tensor and the shards of one stacked leaf that its devices get. These
  shards are copied before the next leaf begins.

  Args:
    mesh: the devices.
    dtype: dtype of the parameters.
    rules: sharding rules by a leaf's path.

  Returns:
    make_leaf(path, shape, rows) -> jax.Array.
  """

  def make_leaf(path, shape, rows):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    leaf_sharding = sharding.tree_shardings(_nested(path, leaf), mesh, rules)
    for key in path:
      leaf_sharding = leaf_sharding[key]
    all_ranges = {_ranges(index, shape) for index in leaf_sharding.addressable_devices_indices_map(shape).values()}
    shards = {ranges: np.empty([stop - start for start, stop in ranges], dtype) for ranges in all_ranges}
    for index, row in rows:
      for ranges, shard in shards.items():
        _fill(shard, ranges, index, row)
    leaf = jax.make_array_from_callback(shape, leaf_sharding, lambda index: shards[_ranges(index, shape)])
    return jax.block_until_ready(leaf)  # A copy in the background would keep the shards alive.

  return make_leaf


def _nested(path, leaf):
  for key in reversed(path):
    leaf = {key: leaf}
  return leaf


def _ranges(index, shape) -> tuple[tuple[int, int], ...]:
  return tuple(axis.indices(size)[:2] for axis, size in zip(index, shape))


def _fill(shard: np.ndarray, ranges, index: tuple[int, ...], row: np.ndarray) -> None:
  """Copies a shard's part of a row, the leaf's part with the given leading indices."""
  outer, inner = ranges[: len(index)], ranges[len(index) :]
  if all(start <= position < stop for position, (start, stop) in zip(index, outer)):
    place = tuple(position - start for position, (start, _) in zip(index, outer))
    shard[place] = row[tuple(slice(*pair) for pair in inner)]
