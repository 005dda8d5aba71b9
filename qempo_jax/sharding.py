"""Devices as a (data, fsdp, tensor) mesh, and ordered rules that place every leaf of the train state on it."""

import functools
import re

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qempo_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what rows are split over

# Path of a leaf (joined by "/") -> its axes. The first rule that matches anywhere in the path holds, so the
# optimizer's moments follow their parameters.
PARAM_RULES = (
    (r"(un)?embedding$", P("tensor", "fsdp")),
    (r"layers/(query|key|value)$", P(None, "fsdp", "tensor", None)),
    (r"layers/output$", P(None, "tensor", None, "fsdp")),
    (r"layers/(gate|up)$", P(None, "fsdp", "tensor")),
    (r"layers/down$", P(None, "tensor", "fsdp")),
    # Adapters: the side that meets the residual stream, and the rank, which is never split.
    (r"layers/(query|key|value|gate|up)/a$", P(None, "fsdp", None)),
    (r"layers/(query|key|value|gate|up)/b$", P(None, None, "tensor")),
    (r"layers/(output|down)/a$", P(None, "tensor", None)),
    (r"layers/(output|down)/b$", P(None, None, "fsdp")),
    (r"layers/(query|key|value|gate|up)_bias$", P(None, "tensor")),
    (r"layers/(output|down)_bias$", P()),
    (r"norm$", P()),
)
STATE_RULES = PARAM_RULES + (
    (r"^(step|rng)$", P()),
    (r"^(dual_params|dual_opt_state|averages)/", P()),
    (r"(^|/)count$", P()),
)


def make_mesh(shape=(-1, 1, 1), *, devices=None) -> Mesh:
  """Devices as a mesh over (data, fsdp, tensor).

  Args:
    shape: devices along each axis; one -1 takes what is left.
    devices: those to arrange; None for all devices of all processes.

  Returns:
    The mesh.

  Raises:
    InputError: the devices at hand cannot be arranged so.
  """
  count = jax.device_count() if devices is None else len(devices)
  known = 1
  for size in shape:
    known *= size if size > 0 else 1
  sizes = tuple(count // known if size == -1 else size for size in shape)
  total = sizes[0] * sizes[1] * sizes[2]
  if len(shape) != 3 or total != count:
    raise InputError(
        f"compute.mesh={tuple(shape)} does not arrange {count} devices; their product over {AXES} must be {count}"
    )
  return jax.make_mesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


def tree_shardings(tree, mesh: Mesh, rules=STATE_RULES):
  """A sharding for every leaf, by the first rule that matches its path.

  An axis of the mesh that does not divide the leaf's dimension is left out for it.

  Raises:
    ValueError: no rule matches a leaf; it is named.
  """

  def place(path, leaf):
    name = "/".join(_key(entry) for entry in path)
    spec = _spec(name, rules)
    if spec is not None:
      return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))
    raise ValueError(f"no sharding rule matches {name!r}; add one to qempo_jax/sharding.py")

  return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Prompts are split over the data and fsdp axes."""
  return NamedSharding(mesh, P(ROWS))


def on_mesh(function, mesh: Mesh):
  """The function, traced so that the functions below know the mesh."""

  @functools.wraps(function)
  def wrapped(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args, **kwargs)

  return wrapped


def platform() -> str:
  """What the devices of `on_mesh` are ("cpu", "gpu" or "tpu"); those of this process without a mesh."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return getattr(device, "platform", None) or jax.default_backend()


def row_shards() -> int:
  """Into how many parts rows are split on the mesh of `on_mesh`; 1 without one, and within one part."""
  return _size("data") * _size("fsdp")


def head_shards() -> int:
  """Into how many parts heads and other widths are split, likewise."""
  return _size("tensor")


def split_axes() -> set[str]:
  """Axes of the mesh of `on_mesh` over which the compiler splits; not those of a `jax.shard_map` around the caller."""
  mesh = jax.sharding.get_abstract_mesh()
  return {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == jax.sharding.AxisType.Auto}


def constrain_rows(x):
  """Keeps rows split as `batch_sharding` splits them, and every other axis whole.

  Parameters are split over fsdp too. Without this the compiler may follow them instead: then every device computes
  every row, on a part of the width, and sums of activations go over the links where parameters should.

  Args:
    x: an array of activations, its rows on the first axis.

  Returns:
    x; unconstrained outside of `on_mesh`, and where the rows do not divide evenly.
  """
  shards = row_shards()
  if shards == 1 or x.shape[0] % shards:
    return x
  return jax.lax.with_sharding_constraint(x, P(ROWS))


def constrain_params(tree, *, layer: bool = False, gathered: bool = False):
  """Keeps parameters split by `PARAM_RULES`, and what is summed into their gradients too.

  Without this the compiler may sum a gradient whole on every device, and cut it afterwards.

  Args:
    tree: parameters, adapters or gradients in the shape of either; leaves that no rule matches stay as they are.
    layer: the tree is of one block, without the axis of the blocks.
    gathered: whole over fsdp, for a loop that would gather them each time; still split over tensor.

  Returns:
    The tree; unconstrained outside of `on_mesh`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if row_shards() * head_shards() == 1:
    return tree

  def keep(path, leaf):
    spec = _spec("/".join(["layers"] * layer + [_key(entry) for entry in path]).removesuffix("/base"), PARAM_RULES)
    if spec is None:
      return leaf
    spec = _fitting(spec[1:] if layer else spec, leaf.shape, mesh)
    if gathered:
      spec = P(*(None if axis == "fsdp" else axis for axis in spec))
    return jax.lax.with_sharding_constraint(leaf, spec)

  return jax.tree_util.tree_map_with_path(keep, tree)


def over_rows(function, matrix, *rows):
  """function(matrix, *rows), computed by each device for its own rows alone.

  The matrix is gathered over fsdp once, whatever loops are inside, and its gradient summed over the devices once; each
  device of the tensor axis keeps to its own rows of it.

  Args:
    function: (matrix [V, D], arrays with rows on their first axis) -> a pytree of such arrays.
    matrix: of the output projection, split by `PARAM_RULES`.
    *rows: arrays.

  Returns:
    What the function returns; where rows do not divide evenly, or without a mesh, it is simply called.
  """
  shards = row_shards()
  if shards == 1 or any(array.shape[0] % shards for array in rows):
    return function(matrix, *rows)
  mesh = jax.sharding.get_abstract_mesh()
  spec = _fitting(P("tensor", "fsdp"), matrix.shape, mesh)
  gather = lambda part: jax.lax.all_gather(part, "fsdp", axis=1, tiled=True)
  if head_shards() > 1 and spec[0]:
    # By hand over tensor as well: the compiler would gather whole rows of it to gather the columns.
    gather = jax.shard_map(gather, in_specs=P("tensor"), out_specs=P("tensor"), axis_names={"tensor"}, check_vma=False)

  def local(part, *rows):
    return function(gather(part) if spec[1] and mesh.shape["fsdp"] > 1 else part, *rows)

  return jax.shard_map(
      local,
      in_specs=(P(None, spec[1]), *(P(ROWS) for _ in rows)),
      out_specs=P(ROWS),
      axis_names=set(ROWS),
      check_vma=False,
  )(matrix, *rows)


def place(tree, where):
  """Puts host arrays, the same on every process, where `where` says (one sharding, or a tree of them).

  Each process hands over what its own devices hold.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  if isinstance(where, NamedSharding):
    where = jax.tree.map(lambda _: where, tree)
  one = lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
  return jax.tree.map(one, tree, where)


def to_host(tree):
  """NumPy arrays of the whole of every leaf, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, P())


def _size(axis: str) -> int:
  """Devices along an axis of the mesh of `on_mesh` that the compiler still splits; 1 within `jax.shard_map` over it."""
  return jax.sharding.get_abstract_mesh().shape[axis] if axis in split_axes() else 1


def _spec(name: str, rules):
  """What the first rule that matches says, or None."""
  return next((spec for pattern, spec in rules if re.search(pattern, name)), None)


def _key(entry) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)


def _fitting(spec, shape, mesh):
  axes = (*spec, *(None,) * (len(shape) - len(spec)))
  keep = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape)]
  return P(*keep)
