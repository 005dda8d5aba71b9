"""Ordered rules that place every leaf of the train state on a mesh, and constraints that keep activations split over it."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qempo_jax.errors import InputError
from qempo_jax.meshes import AXES as AXES
from qempo_jax.meshes import SEQUENCE as SEQUENCE
from qempo_jax.meshes import make_mesh as make_mesh

ROWS = ("data", "fsdp")  # what rows are split over
HOST = "pinned_host"  # memory of the hosts that their devices read

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


def tree_shardings(tree, mesh: Mesh, rules=STATE_RULES):
  """A sharding for every leaf, by the first rule that matches its path.

  An axis of the mesh that does not divide the leaf's dimension is left out for it.

  Raises:
    ValueError: no rule matches a leaf; it is named.
  """

  def place(path, leaf):
    name = "/".join(_key(entry) for entry in path)
    spec = _spec(name.removesuffix("/base"), rules)
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


def sequence_shards() -> int:
  """Into how many parts the tokens of a row are split, likewise."""
  return _size(SEQUENCE)


def split_axes() -> set[str]:
  """Axes of the mesh of `on_mesh` over which the compiler splits; not those of a `jax.shard_map` around the caller."""
  mesh = jax.sharding.get_abstract_mesh()
  return {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == jax.sharding.AxisType.Auto}


def constrain_rows(x):
  """Keeps rows split as `batch_sharding` splits them, their tokens over the sequence axis, and every other axis whole.

  Parameters are split over fsdp too. Without this the compiler may follow them instead: then every device computes
  every row, on a part of the width, and sums of activations go over the links where parameters should.

  Args:
    x: an array of activations, its rows on the first axis, their tokens (in decoding, samples) on the second.

  Returns:
    x; unconstrained outside of `on_mesh`, and where the rows do not divide evenly.
  """
  rows = _rows_of(x)
  return x if rows is None else jax.lax.with_sharding_constraint(x, P(*rows))


def split_tokens(x):
  """Keeps the second axis of activations, tokens or chunks of them, split over the sequence axis; no-op without one."""
  rows = _rows_of(x) if sequence_shards() > 1 else None
  return x if rows is None else jax.lax.with_sharding_constraint(x, P(*rows, *_free(x)))


def gather_tokens(x):
  """Whole rows of activations on each device of the sequence axis, as keys and values must be; no-op without one."""
  rows = _rows_of(x) if sequence_shards() > 1 else None
  return x if rows is None else jax.lax.with_sharding_constraint(x, P(rows[0], None, *_free(x)))


def for_attention(q, k, v):
  """Queries with their tokens split over the sequence axis, keys and values whole: [B, L, H, K], [B, L, J, K] twice."""
  return split_tokens(q), gather_tokens(k), gather_tokens(v)


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
  """function(matrix, *rows), computed by each device for its own rows alone, and its own tokens of them.

  The matrix is gathered over fsdp once, whatever loops are inside, and its gradient summed over the devices once; each
  device of the tensor axis keeps to its own rows of it.

  Args:
    function: (matrix [V, D], arrays with rows on their first axis and tokens on their second) -> a pytree of such
      arrays, token by token.
    matrix: of the output projection, split by `PARAM_RULES`.
    *rows: arrays.

  Returns:
    What the function returns; where rows do not divide evenly, or without a mesh, it is simply called.
  """
  shards, parts = row_shards(), sequence_shards()
  if shards * parts == 1 or any(array.shape[0] % shards for array in rows):
    return function(matrix, *rows)
  tokens = rows[0].shape[1]
  even = lambda x: jnp.pad(x, ((0, 0), (0, -tokens % parts), *((0, 0),) * (x.ndim - 2)))
  own = P(ROWS, SEQUENCE) if parts > 1 else P(ROWS)
  mesh = jax.sharding.get_abstract_mesh()
  spec = _fitting(P("tensor", "fsdp"), matrix.shape, mesh)
  gather = lambda part: jax.lax.all_gather(part, "fsdp", axis=1, tiled=True)
  if head_shards() > 1 and spec[0]:
    # By hand over tensor as well: the compiler would gather whole rows of it to gather the columns.
    gather = jax.shard_map(gather, in_specs=P("tensor"), out_specs=P("tensor"), axis_names={"tensor"}, check_vma=False)

  def local(part, *rows):
    return function(gather(part) if spec[1] and mesh.shape["fsdp"] > 1 else part, *rows)

  found = jax.shard_map(
    local,
    in_specs=(P(None, spec[1]), *(own for _ in rows)),
    out_specs=own,
    axis_names={*ROWS, SEQUENCE} if parts > 1 else set(ROWS),
    check_vma=False,
  )(matrix, *(map(even, rows) if parts > 1 else rows))
  return jax.tree.map(lambda x: x[:, :tokens], found) if parts > 1 else found


def each_for_its_rows(function, whole, rows):
  """function(whole, rows), computed by each device for its own rows alone, loops included.

  Args:
    function: (a pytree, a pytree of arrays with rows on their first axis) -> a pytree of such arrays.
    whole: gathered over the data axes, still split over tensor.
    rows: split over them.

  Returns:
    What the function returns, joined; where rows do not divide evenly, or without a mesh, it is simply called.
  """
  shards = row_shards()
  if shards == 1 or any(array.shape[0] % shards for array in jax.tree.leaves(rows)):
    return function(whole, rows)
  return jax.shard_map(function, in_specs=(P(), P(ROWS)), out_specs=P(ROWS), axis_names=set(ROWS), check_vma=False)(
    whole, rows
  )


def most_over_rows(count):
  """The largest of a number over the data axes within `each_for_its_rows`, so that all leave a loop together."""
  mesh = jax.sharding.get_abstract_mesh()
  manual = [name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == jax.sharding.AxisType.Manual]
  return jax.lax.pmax(count, tuple(manual)) if manual else count


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


def offloaded(tree):
  """The same arrays, split alike, in the memory of the devices' hosts.

  Raises:
    InputError: the platform has no such memory that its devices reach.
  """
  device = next(iter(jax.tree.leaves(tree)[0].sharding.addressable_devices))
  kinds = [memory.kind for memory in device.addressable_memories()]
  if HOST not in kinds:
    raise InputError(
      f"compute.reference_memory=host needs {HOST} memory, and this {device.platform} has {', '.join(kinds)}: set it to device"
    )
  return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind(HOST), tree))


def fetched(tree, where=None):
  """The same in the devices' own memory, also within jit, where `where` gives the shardings; there already: as it is."""
  where = jax.tree.map(lambda leaf: leaf.sharding, tree) if where is None else where
  bring = lambda leaf, sharding: jax.device_put(leaf, sharding.with_memory_kind("device"))
  return jax.tree.map(
    lambda leaf, sharding: bring(leaf, sharding) if sharding.memory_kind == HOST else leaf, tree, where
  )


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


def _rows_of(x):
  """The mesh's axes of x's rows and of their tokens, where there are any; None where nothing is split, or not evenly."""
  rows, parts = row_shards(), sequence_shards()
  if rows * parts == 1 or x.shape[0] % rows:
    return None
  of_rows = ROWS if rows > 1 else None
  return (of_rows,) if parts == 1 else (of_rows, SEQUENCE if x.shape[1] % parts == 0 else None)


def _free(x):
  """The axes of x behind its tokens, left to the compiler."""
  return (P.UNCONSTRAINED,) * (x.ndim - 2)


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
