"""Parameter layout for sampling: matrices in the compute dtype, sharded over tensor alone.

Training shards parameters over fsdp too, and gathers each block when it is used. A sampler would gather every block for
every token. One compiled function therefore rounds and reshards the parameters once a step.
"""

from collections.abc import Callable
import math

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.meshes import AXES
from qempo_jax.meshes import SEQUENCE
from qempo_jax.models.config import ModelConfig


def _whole(spec):
  return P(*(axis if axis == "tensor" else None for axis in spec))


RULES = tuple((pattern, _whole(spec)) for pattern, spec in sharding.PARAM_RULES)


def sampling_mesh(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> jax.sharding.Mesh:
  """A training mesh's devices, in their order, in another shape.

  Args:
    mesh: the training mesh.
    shape: devices along (data, fsdp, tensor) or (data, fsdp, tensor, sequence); (): the training mesh. Rows are
      sharded over data and fsdp, the samples of a row over sequence.

  Returns:
    The mesh.

  Raises:
    InputError: the shape does not fit the number of devices.
  """
  if not shape:
    return mesh
  if len(shape) not in (3, 4) or math.prod(shape) != mesh.size or min(shape) < 1:
    raise InputError(f"sampling.mesh={shape} does not fit the {mesh.size} devices of compute.mesh={mesh.devices.shape}")
  names = (*AXES, SEQUENCE)[: len(shape)]
  return jax.sharding.Mesh(mesh.devices.reshape(shape), names, axis_types=(AxisType.Auto,) * len(shape))


def arrangement(params, config: ModelConfig, mesh: jax.sharding.Mesh) -> Callable:
  """Jitted function from trained parameters to their sampling layout.

  Args:
    params: parameters of a policy, or their shapes, on a training mesh.
    config: the decoder's config.
    mesh: from `sampling_mesh`.

  Returns:
    params -> the parameters for `sampler.sample_groups`; on one device in the compute dtype, they are unchanged.
  """
  rounded = lambda leaf: leaf.astype(config.compute_dtype) if leaf.ndim > 2 else leaf
  round_blocks = lambda tree: tree | {"layers": jax.tree.map(rounded, tree["layers"])}
  where = sharding.tree_shardings(jax.eval_shape(round_blocks, params), mesh, RULES)
  return jax.jit(round_blocks, out_shardings=where)
