"""Between Hugging Face's tensors, named one by one, and the parameter tree, stacked over the blocks.

`slots` is the one description of names and shapes; reading, writing and adapters all follow it.
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
# "post_attention_layernorm" is what stands before the feed-forward layer in Llama, and what stands on the
# attention's output elsewhere.
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


class Slot(NamedTuple):
  """One tensor of a checkpoint and its place in the parameter tree.

  Attributes:
    name: what Hugging Face calls it.
    key: the leaf's key, under "layers" where `index` is given.
    index: the block, or None outside the blocks.
    shape: the leaf's shape, without its axis of blocks.
    stored: the shape that Hugging Face stores: matrices as [out, in], all else as it is.
  """

  name: str
  key: str
  index: int | None
  shape: tuple[int, ...]
  stored: tuple[int, ...]

  def inward(self, tensor: np.ndarray) -> np.ndarray:
    """From Hugging Face's layout to the leaf's."""
    return tensor.T.reshape(self.shape) if self._is_matrix else tensor

  def outward(self, leaf: np.ndarray) -> np.ndarray:
    """From the leaf's layout to Hugging Face's."""
    return leaf.reshape(self.stored[::-1]).T if self._is_matrix else leaf

  @property
  def _is_matrix(self) -> bool:
    return self.index is not None and len(self.shape) > 1


def slots(config: ModelConfig) -> Iterator[Slot]:
  """All tensors of a checkpoint of this shape, block by block."""
  shapes = transformer.param_shapes(config)
  for key, shape in shapes.items():
    if key != "layers":
      yield Slot(_OUTER[key], key, None, shape, shape)
  for index in range(config.num_layers):
    for key, (_, *shape) in shapes["layers"].items():
      yield Slot(block_name(key, index, config), key, index, tuple(shape), _stored_shape(key, tuple(shape)))


def block_name(key: str, index: int, config: ModelConfig) -> str:
  """Hugging Face's name of a block's leaf."""
  module = key.removesuffix("_bias")
  kind = "bias" if module != key else "weight"
  return f"model.layers.{index}.{(_MODULES | _NORMS[config.norm_placement])[module]}.{kind}"


def expected(config: ModelConfig) -> list[str]:
  """Hugging Face's names of all the tensors that a checkpoint of this shape has."""
  return [slot.name for slot in slots(config)]


def assemble(read: Callable[[str], np.ndarray], config: ModelConfig, place: Callable) -> dict:
  """Builds the parameter tree from tensors named and shaped as Hugging Face names and shapes them.

  Args:
    read: gives a tensor by its Hugging Face name; matrices are [out, in].
    config: the decoder's shape.
    place: `place(path, shape, rows)` makes a leaf of a path such as ("layers", "query") from its parts, an
      iterator of (block, array), or of one (None, array) outside the blocks; see `placing`.

  Returns:
    The parameters.

  Raises:
    InputError: a tensor has another shape than the configuration says, or is not finite.
  """
  by_path: dict[tuple[str, ...], list[Slot]] = {}
  for slot in slots(config):
    path = (slot.key,) if slot.index is None else ("layers", slot.key)
    by_path.setdefault(path, []).append(slot)
  params = {"layers": {}}
  for path, parts in by_path.items():
    shape = parts[0].shape if parts[0].index is None else (len(parts), *parts[0].shape)
    leaf = place(path, shape, ((slot.index, _checked(read, slot)) for slot in parts))
    (params["layers"] if len(path) > 1 else params)[path[-1]] = leaf
  return params


def check_shape(slot: Slot, shape: tuple[int, ...]) -> None:
  """Raises InputError where a tensor's shape is not the slot's."""
  if shape != slot.stored:
    raise InputError(f"tensor {slot.name!r} has shape {shape}, which does not fit the configuration's {slot.stored}")


def listed(names: Iterable[str], *, most: int = 3) -> str:
  """The first few names, quoted, and how many more there are."""
  names = sorted(names)
  shown = ", ".join(map(repr, names[:most]))
  return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _checked(read, slot: Slot) -> np.ndarray:
  tensor = np.asarray(read(slot.name))
  check_shape(slot, tensor.shape)
  if not np.isfinite(tensor).all():
    raise InputError(f"tensor {slot.name!r} holds NaN or infinity; the checkpoint is damaged")
  return slot.inward(tensor)


def _stored_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if len(shape) == 1:
    return shape
  inputs = shape[0] * shape[1] if key == "output" else shape[0]
  return (int(np.prod(shape)) // inputs, inputs)
