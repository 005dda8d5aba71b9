"""Maps Hugging Face's tensors, named one by one, to the parameter tree, stacked over the blocks.

`tensor_specs` is the only description of names and shapes; reading, writing and adapters all follow it.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

_OUTER = {
  "embedding": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "unembedding": "lm_head.weight",
}
_MODULES = {
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "output": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
  "query_norm": "self_attn.q_norm",
  "key_norm": "self_attn.k_norm",
}
# "post_attention_layernorm" is the norm before the feed-forward layer in Llama, and the norm of the attention's output
# elsewhere.
_NORMS = {
  "pre": {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
  "post": {
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
  },
  "both": {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
  },
}


class TensorSpec(NamedTuple):
  """A tensor of a checkpoint and its leaf in the parameter tree.

  Attributes:
    name: Hugging Face's name.
    key: the leaf's key, under "layers" if `index` is given.
    index: the block, or None outside the blocks.
    shape: the leaf's shape, without its axis of blocks.
    stored: Hugging Face's shape: matrices as [out, in], others unchanged.
  """

  name: str
  key: str
  index: int | None
  shape: tuple[int, ...]
  stored: tuple[int, ...]

  def from_hugging_face(self, tensor: np.ndarray) -> np.ndarray:
    """Converts Hugging Face's layout to the leaf's."""
    return tensor.T.reshape(self.shape) if self._is_matrix else tensor

  def to_hugging_face(self, leaf: np.ndarray) -> np.ndarray:
    """Converts the leaf's layout to Hugging Face's."""
    return leaf.reshape(self.stored[::-1]).T if self._is_matrix else leaf

  @property
  def _is_matrix(self) -> bool:
    return self.index is not None and len(self.shape) > 1


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
  """All tensors of a checkpoint with this config, block by block."""
  shapes = transformer.param_shapes(config)
  for key, shape in shapes.items():
    if key != "layers":
      yield TensorSpec(_OUTER[key], key, None, shape, shape)
  for index in range(config.num_layers):
    for key, (_, *shape) in shapes["layers"].items():
      yield TensorSpec(block_name(key, index, config), key, index, tuple(shape), _stored_shape(key, tuple(shape)))


def block_name(key: str, index: int, config: ModelConfig) -> str:
  """Hugging Face's name of a block's leaf."""
  module = key.removesuffix("_bias")
  kind = "bias" if module != key else "weight"
  return f"model.layers.{index}.{(_MODULES | _NORMS[config.norm_placement])[module]}.{kind}"


def expected(config: ModelConfig) -> list[str]:
  """Hugging Face's names of all tensors of a checkpoint with this config."""
  return [spec.name for spec in tensor_specs(config)]


def assemble(read: Callable[[str], np.ndarray], config: ModelConfig, make_leaf: Callable) -> dict:
  """Builds the parameter tree from tensors with Hugging Face's names and shapes.

  Args:
    read: returns a tensor by its Hugging Face name; matrices are [out, in].
    config: the decoder's config.
    make_leaf: `make_leaf(path, shape, rows)` builds the leaf of a path such as ("layers", "query") from its parts, an
      iterator of (block, array), or of one (None, array) outside the blocks; see `placing`.

  Returns:
    The parameters.

  Raises:
    InputError: a tensor does not have the config's shape, or is not finite.
  """
  by_path: dict[tuple[str, ...], list[TensorSpec]] = {}
  for spec in tensor_specs(config):
    path = (spec.key,) if spec.index is None else ("layers", spec.key)
    by_path.setdefault(path, []).append(spec)
  params = {"layers": {}}
  for path, parts in by_path.items():
    shape = parts[0].shape if parts[0].index is None else (len(parts), *parts[0].shape)
    leaf = make_leaf(path, shape, ((spec.index, _checked(read, spec)) for spec in parts))
    (params["layers"] if len(path) > 1 else params)[path[-1]] = leaf
  return params


def check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
  """Raises InputError if a tensor does not have the spec's shape."""
  if shape != spec.stored:
    raise InputError(f"tensor {spec.name!r} has shape {shape}, which does not fit the configuration's {spec.stored}")


def listed(names: Iterable[str], *, most: int = 3) -> str:
  """The first few names, quoted, and the number of others."""
  names = sorted(names)
  shown = ", ".join(map(repr, names[:most]))
  return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _checked(read, spec: TensorSpec) -> np.ndarray:
  tensor = np.asarray(read(spec.name))
  check_shape(spec, tensor.shape)
  if not np.isfinite(tensor).all():
    raise InputError(f"tensor {spec.name!r} holds NaN or infinity; the checkpoint is damaged")
  return spec.from_hugging_face(tensor)


def _stored_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if len(shape) == 1:
    return shape
  inputs = shape[0] * shape[1] if key == "output" else shape[0]
  return (int(np.prod(shape)) // inputs, inputs)
