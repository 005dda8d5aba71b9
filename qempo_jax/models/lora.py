"""Low-rank adapters: a frozen parameter tree, and small trainable matrices for its projections.

    W x  becomes  W x + s B A x,     s = alpha / rank      (Hu et al., "LoRA", arXiv 2106.09685)

Adapters are a separate tree, so that gradients, optimizer state and checkpoints hold them alone. `apply` combines them
with the base without a copy; the result works like a plain tree in `transformer`, `scoring` and the sampler. The base
itself stays unchanged, so it is also the reference policy, at no extra memory.

Shape letters as in `layers`; N blocks, I and O inputs and outputs of a matrix (heads and their width as one axis),
R rank.
"""

import dataclasses
import math
import re

from flax import struct
import jax
import jax.numpy as jnp

from qempo_jax.errors import InputError
from qempo_jax.linear import linear
from qempo_jax.models.config import DELTA
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import PROJECTIONS

TARGETS = (
  *PROJECTIONS,
  *EXPERTS,
  *(f"global_{name}" for name in PROJECTIONS[:4]),
  *(f"shared_{name}" for name in PROJECTIONS[4:]),
  *DELTA,
)
ALL_MATRICES = r"^layers/(global_|shared_|delta_)?(query|key|value|output|gate|up|down)$"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Size and targets of adapters.

  Attributes:
    rank: R.
    alpha: the adapters' product is scaled by alpha / rank.
    targets: regular expression that is searched in projections' paths ("layers/query", ...); matches get an adapter.
  """

  rank: int
  alpha: float
  targets: str = ALL_MATRICES

  def __post_init__(self):
    if self.rank < 1 or self.alpha <= 0:
      raise InputError(f"lora.rank={self.rank} and lora.alpha={self.alpha} must be positive (rank 0 turns LoRA off)")
    try:
      re.compile(self.targets)
    except re.error as error:
      raise InputError(f"lora.targets={self.targets!r} is not a regular expression ({error})") from error


@struct.dataclass
class Adapter:
  """One projection's adapter, stacked over blocks.

  Attributes:
    a: [N, (E,) I, R].
    b: [N, (E,) R, O].
    scale: alpha / rank; static, not a leaf of the tree.
  """

  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)


@struct.dataclass
class LowRank:
  """A projection with its adapter; `lax.scan` over the blocks slices it like any leaf.

  Attributes:
    base: [(N,) ...] the frozen matrix, in its own shape.
    a: [(N,) I, R].
    b: [(N,) R, O].
    scale: alpha / rank.
  """

  base: jax.Array
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)

  @property
  def shape(self):
    """Shape of the frozen matrix."""
    return self.base.shape

  def product(self, x, dtype):
    """x W + s (x A) B over x's last axis: [..., O]."""
    low = linear(linear(x, self.a, dtype), self.b, dtype)
    return linear(x, self.base.reshape(x.shape[-1], -1), dtype) + self.scale * low


def init(rng, params, config: LoraConfig):
  """Adapters with zero product: B zero, A uniform in +-1 / sqrt(I), as in the authors' code.

  Args:
    rng: a key.
    params: the base; only shapes are read.
    config: targets and rank.

  Returns:
    {"layers": {projection: `Adapter`}}, float32.

  Raises:
    InputError: the pattern matches no projection.
  """
  present = [name for name in TARGETS if name in params["layers"]]
  names = [name for name in present if re.search(config.targets, f"layers/{name}")]
  if not names:
    known = ", ".join(f"layers/{name}" for name in present)
    raise InputError(f"lora.targets={config.targets!r} matches none of {known}")

  def adapter(name):
    *stack, inputs, outputs = matrix_shape(name, params["layers"][name].shape)
    key = jax.random.fold_in(rng, TARGETS.index(name))
    bound = 1 / math.sqrt(inputs)
    a = jax.random.uniform(key, (*stack, inputs, config.rank), jnp.float32, -bound, bound)
    return Adapter(a, jnp.zeros((*stack, config.rank, outputs)), config.alpha / config.rank)

  return {"layers": {name: adapter(name) for name in names}}


def apply(base, adapters):
  """The base combined with adapters: a parameter tree that shares the base's arrays, which get no gradient.

  Args:
    base: a plain parameter tree, of any float dtype.
    adapters: from `init` for this base.

  Returns:
    The tree, with `LowRank` for adapted projections.
  """
  frozen = jax.lax.stop_gradient(base)
  adapted = {
    name: LowRank(frozen["layers"][name], adapter.a, adapter.b, adapter.scale)
    for name, adapter in adapters["layers"].items()
  }
  return frozen | {"layers": frozen["layers"] | adapted}


def merge(base, adapters):
  """The base plus s A B: a plain parameter tree in the base's dtype, for export.

  Args:
    base: a plain parameter tree.
    adapters: from `init` for this base.

  Returns:
    A tree of the base's shapes; leaves without an adapter are shared with the base.
  """

  def merged(leaf, adapter):
    change = adapter.scale * jnp.einsum("...ir,...ro->...io", adapter.a, adapter.b, precision="highest")
    return (leaf + change.reshape(leaf.shape)).astype(leaf.dtype)

  changed = {name: merged(base["layers"][name], adapter) for name, adapter in adapters["layers"].items()}
  return base | {"layers": base["layers"] | changed}


def matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """(N, I, O) of a stacked projection, (N, E, I, O) of experts.

  The output projection joins its leading axes, the others their last axes.
  """
  if name in EXPERTS:
    return shape
  inputs = math.prod(shape[1:-1]) if name.endswith("output") else shape[1]
  return shape[0], inputs, math.prod(shape[1:]) // inputs
