"""Ordered rules that shard every leaf of the train state over a mesh, and sharding constraints of activations."""

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

ROWS = ("data", "fsdp")  # Mesh axes that shard rows.
HOST = "pinned_host"  # Memory kind of hosts that their devices can read.

# Path of a leaf (joined by "/") -> its axes. The first rule that matches anywhere in the path applies, so the
# optimizer's moments follow their parameters.
PARAM_RULES = (
  (r"(un)?embedding$", P("tensor", "fsdp")),
  (r"block_projection$", P("tensor", "fsdp")),
  (r"layers/(global_)?(query|key|value)$", P(None, "fsdp", "tensor", None)),
  (r"layers/delta_(query|key|value|gate)$", P(None, "fsdp", "tensor", None)),
  (r"layers/(global_|delta_)?output$", P(None, "tensor", None, "fsdp")),
  (r"layers/((shared_)?(gate|up)|delta_(rate|decay)|block_gate)$", P(None, "fsdp", "tensor")),
  (r"layers/((shared_)?down|block_output)$", P(None, "tensor", "fsdp")),
  (r"layers/(delta_(convolution|log_rate|step)|block_scale|expert_scale|dense_factor)$", P()),
  (r"layers/router(_bias)?$", P()),
  (r"layers/expert_(gate|up)$", P(None, "tensor", "fsdp", None)),
  (r"layers/expert_down$", P(None, "tensor", None, "fsdp")),
  (r"layers/expert_(gate|up|down)/(a|b)$", P(None, "tensor", None, None)),
  (r"layers/(sinks|expert_(gate|up|down)_bias)$", P(None, "tensor")),
  # Adapters: the side at the residual stream is sharded; the rank never is.
  (r"layers/(global_|shared_|delta_)?(query|key|value|gate|up)/a$", P(None, "fsdp", None)),
  (r"layers/(global_|shared_|delta_)?(query|key|value|gate|up)/b$", P(None, None, "tensor")),
  (r"layers/(global_|shared_|delta_)?(output|down)/a$", P(None, "tensor", None)),
  (r"layers/(global_|shared_|delta_)?(output|down)/b$", P(None, None, "fsdp")),
  (r"layers/(global_)?(query|key|value|gate|up)_bias$", P(None, "tensor")),
  (r"layers/(global_)?(output|down)_bias$", P()),
  (r"norm$", P()),
)
STATE_RULES = PARAM_RULES + (
  (r"^(step|rng)$", P()),
  (r"^(dual_params|dual_opt_state|averages)/", P()),
  (r"(^|/)count$", P()),
)


def tree_shardings(tree, mesh: Mesh, rules=STATE_RULES):
  """Sharding of every leaf, by the first rule that matches its path.

  A mesh axis that does not divide the leaf's dimension is dropped for it.

  Raises:
    ValueError: no rule matches a leaf; the message names it.
  """

  def of_leaf(path, leaf):
    name = "/".join(_key(entry) for entry in path)
    spec = _spec(name.removesuffix("/base"), rules)
    if spec is not None:
      return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))
    raise ValueError(f"no sharding rule matches {name!r}; add one to qempo_jax/sharding.py")

  return jax.tree_util.tree_map_with_path(of_leaf, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of prompts over the data and fsdp axes."""
  return NamedSharding(mesh, P(ROWS))


def rows_sharding(mesh: Mesh, rows: int) -> NamedSharding:
  """Sharding of a batch of so many rows: over the data axes where they divide evenly, else replicated."""
  return replicated(mesh) if rows % (mesh.shape["data"] * mesh.shape["fsdp"]) else batch_sharding(mesh)


def abstract(tree, mesh: Mesh, rules=STATE_RULES):
  """The shapes of a tree's arrays, each with its sharding by the rules; no memory is taken."""
  place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  return jax.tree.map(place, tree, tree_shardings(tree, mesh, rules))


def on_mesh(function, mesh: Mesh):
  """The function, traced with the mesh that the functions below read."""

  @functools.wraps(function)
  def wrapped(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args, **kwargs)

  return wrapped


def platform() -> str:
  """Platform of the devices of `on_mesh` ("cpu", "gpu" or "tpu"); without a mesh, of this process."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return getattr(device, "platform", None) or jax.default_backend()


def row_shards() -> int:
  """Number of shards of rows on the mesh of `on_mesh`; 1 without a mesh, and inside one shard."""
  return _size("data") * _size("fsdp")


def head_shards() -> int:
  """Number of shards of heads and other widths, as `row_shards`."""
  return _size("tensor")


def sequence_shards() -> int:
  """Number of shards of a row's tokens, as `row_shards`."""
  return _size(SEQUENCE)


def split_axes() -> set[str]:
  """Mesh axes of `on_mesh` that the compiler shards; not those of an enclosing `jax.shard_map`."""
  mesh = jax.sharding.get_abstract_mesh()
  return {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == jax.sharding.AxisType.Auto}


def constrain_rows(x):
  """Keeps rows sharded as in `batch_sharding`, tokens over the sequence axis, and every other axis whole.

  Parameters are sharded over fsdp too. Without this constraint the compiler may follow them: then every device computes
  all rows on a part of the width, and sums of activations use the links instead of parameters.

  Args:
    x: activations, with rows on the first axis and tokens (in decoding, samples) on the second.

  Returns:
    x; unconstrained outside of `on_mesh`, and if the rows do not divide evenly.
  """
  rows = _rows_of(x)
  return x if rows is None else jax.lax.with_sharding_constraint(x, P(*rows))


def split_tokens(x):
  """Keeps the second axis of activations (tokens or chunks) sharded over the sequence axis; no-op without one."""
  rows = _rows_of(x) if sequence_shards() > 1 else None
  return x if rows is None else jax.lax.with_sharding_constraint(x, P(*rows, *_free(x)))


def gather_tokens(x):
  """Gathers whole rows of activations on each device of the sequence axis, for keys and values; no-op without one."""
  rows = _rows_of(x) if sequence_shards() > 1 else None
  return x if rows is None else jax.lax.with_sharding_constraint(x, P(rows[0], None, *_free(x)))


def for_attention(q, k, v):
  """Queries with sharded tokens, keys and values with whole rows: [B, L, H, K], [B, L, J, K] twice."""
  return split_tokens(q), gather_tokens(k), gather_tokens(v)


def over_heads(function, arrays, tokens, *whole):
  """function(*arrays, tokens, *whole), computed by each device on its shard of rows, tokens and heads.

  Args:
    function: called within `jax.shard_map` on a mesh; returns [B, L, heads, ...].
    arrays: [B, L, heads, ...] each; rows and heads that do not divide evenly stay whole, tokens must.
    tokens: pytree of arrays [B, L].
    *whole: arrays that every device has.
  """
  parts = sequence_shards()
  if row_shards() * head_shards() * parts == 1:
    return function(*arrays, tokens, *whole)
  rows = ROWS if all(x.shape[0] % row_shards() == 0 for x in arrays) else None
  heads = "tensor" if all(x.shape[2] % head_shards() == 0 for x in arrays) else None
  split = P(rows, SEQUENCE if parts > 1 else None, heads)
  specs = (*(split for _ in arrays), P(*split[:2]), *(P() for _ in whole))
  return jax.shard_map(function, in_specs=specs, out_specs=split, check_vma=False)(*arrays, tokens, *whole)


def constrain_params(tree, *, layer: bool = False, gathered: bool = False):
  """Keeps parameters, and the sums in their gradients, sharded by `PARAM_RULES`.

  Without this constraint the compiler may compute a whole gradient on every device, and slice it afterwards.

  Args:
    tree: parameters, adapters, or gradients of either; leaves without a matching rule stay as they are.
    layer: the tree is one block's, without the axis of the blocks.
    gathered: whole over fsdp, for a loop that would gather the leaves each time; still sharded over tensor.

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
  """function(matrix, *rows), computed by each device on its shard of rows and tokens.

  The matrix is gathered over fsdp once, outside any loops of the function, and its gradient is summed over devices
  once. Each device of the tensor axis keeps its shard of the matrix's rows.

  Args:
    function: (matrix [V, D], arrays with rows on their first axis and tokens on their second) -> a pytree of such
      arrays, token by token.
    matrix: the output projection, sharded by `PARAM_RULES`.
    *rows: arrays.

  Returns:
    The function's result. If rows do not divide evenly, or without a mesh, the function is called directly.
  """
  shards, parts = row_shards(), sequence_shards()
  if shards * parts == 1 or any(array.shape[0] % shards for array in rows):
    return function(matrix, *rows)
  tokens = rows[0].shape[1]
  pad_tokens = lambda x: jnp.pad(x, ((0, 0), (0, -tokens % parts), *((0, 0),) * (x.ndim - 2)))
  row_spec = P(ROWS, SEQUENCE) if parts > 1 else P(ROWS)
  mesh = jax.sharding.get_abstract_mesh()
  spec = _fitting(P("tensor", "fsdp"), matrix.shape, mesh)
  gather = lambda part: jax.lax.all_gather(part, "fsdp", axis=1, tiled=True)
  if head_shards() > 1 and spec[0]:
    # Manual over tensor as well: the compiler would gather whole rows to gather the columns.
    gather = jax.shard_map(gather, in_specs=P("tensor"), out_specs=P("tensor"), axis_names={"tensor"}, check_vma=False)

  def local(part, *rows):
    return function(gather(part) if spec[1] and mesh.shape["fsdp"] > 1 else part, *rows)

  result = jax.shard_map(
    local,
    in_specs=(P(None, spec[1]), *(row_spec for _ in rows)),
    out_specs=row_spec,
    axis_names={*ROWS, SEQUENCE} if parts > 1 else set(ROWS),
    check_vma=False,
  )(matrix, *(map(pad_tokens, rows) if parts > 1 else rows))
  return jax.tree.map(lambda x: x[:, :tokens], result) if parts > 1 else result


def each_for_its_rows(function, whole, rows):
  """function(whole, rows), computed by each device on its shard of rows, loops included.

  Args:
    function: (a pytree, a pytree of arrays with rows on their first axis) -> a pytree of such arrays.
    whole: gathered over the data axes, still sharded over tensor.
    rows: sharded over the data axes.

  Returns:
    The function's result. If rows do not divide evenly, or without a mesh, the function is called directly.
  """
  shards = row_shards()
  if shards == 1 or any(array.shape[0] % shards for array in jax.tree.leaves(rows)):
    return function(whole, rows)
  return jax.shard_map(function, in_specs=(P(), P(ROWS)), out_specs=P(ROWS), axis_names=set(ROWS), check_vma=False)(
    whole, rows
  )


def most_over_rows(count):
  """Largest value over the data axes within `each_for_its_rows`, so that all shards leave a loop together."""
  mesh = jax.sharding.get_abstract_mesh()
  manual = [name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == jax.sharding.AxisType.Manual]
  return jax.lax.pmax(count, tuple(manual)) if manual else count


def place(tree, where):
  """Puts host arrays, the same on every process, on devices with the given shardings (one, or a tree of them).

  Each process provides the shards of its own devices.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  if isinstance(where, NamedSharding):
    where = jax.tree.map(lambda _: where, tree)
  one = lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
  return jax.tree.map(one, tree, where)


def offloaded(tree):
  """The same arrays with the same shardings, in the memory of the devices' hosts.

  Raises:
    InputError: the platform has no host memory that its devices reach.
  """
  device = next(iter(jax.tree.leaves(tree)[0].sharding.addressable_devices))
  kinds = [memory.kind for memory in device.addressable_memories()]
  if HOST not in kinds:
    raise InputError(
      f"compute.reference_memory=host needs {HOST} memory, and this {device.platform} has {', '.join(kinds)}: set it to"
      " device"
    )
  return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind(HOST), tree))


def fetched(tree, where=None):
  """The arrays in device memory; within jit, `where` gives the shardings. Arrays already there are unchanged."""
  where = jax.tree.map(lambda leaf: leaf.sharding, tree) if where is None else where
  to_device = lambda leaf, sharding: jax.device_put(leaf, sharding.with_memory_kind("device"))
  return jax.tree.map(
    lambda leaf, sharding: to_device(leaf, sharding) if sharding.memory_kind == HOST else leaf, tree, where
  )


def to_host(tree):
  """NumPy arrays of every whole leaf, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding with the same value on every device."""
  return NamedSharding(mesh, P())


def _size(axis: str) -> int:
  """Devices along an axis of the mesh of `on_mesh` that the compiler shards; 1 within a `jax.shard_map` over it."""
  return jax.sharding.get_abstract_mesh().shape[axis] if axis in split_axes() else 1


def _rows_of(x):
  """Mesh axes of x's rows and, with a sequence axis, of its tokens; None if nothing is sharded, or rows are uneven."""
  rows, parts = row_shards(), sequence_shards()
  if rows * parts == 1 or x.shape[0] % rows:
    return None
  row_axes = ROWS if rows > 1 else None
  return (row_axes,) if parts == 1 else (row_axes, SEQUENCE if x.shape[1] % parts == 0 else None)


def _free(x):
  """Unconstrained specs of the axes of x behind its tokens."""
  return (P.UNCONSTRAINED,) * (x.ndim - 2)


def _spec(name: str, rules):
  """Spec of the first rule that matches, or None."""
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
