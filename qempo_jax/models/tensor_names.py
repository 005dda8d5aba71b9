"""Between Hugging Face's tensors, named one by one, and the parameter tree, stacked over the blocks."""

from collections.abc import Callable
from collections.abc import Iterable

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


def assemble(read: Callable[[str], np.ndarray], config: ModelConfig) -> dict:
  """Builds the parameter tree from tensors named and shaped as Hugging Face names and shapes them.

  Args:
    read: gives a tensor by its Hugging Face name; matrices are [out, in].
    config: the decoder's shape.

  Returns:
    The parameters, float32.

  Raises:
    InputError: a tensor has another shape than the configuration says, or is not finite.
  """
  shapes = transformer.param_shapes(config)
  params = {key: _leaf(read, _OUTER[key], key, shape) for key, shape in shapes.items() if key != "layers"}
  params["layers"] = {}
  for key, shape in shapes["layers"].items():
    stacked = np.empty(shape, np.float32)
    for index in range(config.num_layers):
      stacked[index] = _leaf(read, _block_name(key, index, config), key, shape[1:])
    params["layers"][key] = stacked
  return params


def expected(config: ModelConfig) -> list[str]:
  """Hugging Face's names of all the tensors that a checkpoint of this shape has."""
  shapes = transformer.param_shapes(config)
  names = [_OUTER[key] for key in shapes if key != "layers"]
  blocks = range(config.num_layers)
  return names + [_block_name(key, index, config) for index in blocks for key in shapes["layers"]]


def listed(names: Iterable[str], *, most: int = 3) -> str:
  """The first few names, quoted, and how many more there are."""
  names = sorted(names)
  shown = ", ".join(map(repr, names[:most]))
  return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _block_name(key: str, index: int, config: ModelConfig) -> str:
  module = key.removesuffix("_bias")
  kind = "bias" if module != key else "weight"
  return f"model.layers.{index}.{(_MODULES | _NORMS[config.norm_placement])[module]}.{kind}"


def _leaf(read, name: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
  tensor = np.asarray(read(name), np.float32)
  stored = _stored_shape(key, shape)
  if tensor.shape != stored:
    raise InputError(f"tensor {name!r} has shape {tensor.shape}, which does not fit the configuration's {stored}")
  if not np.isfinite(tensor).all():
    raise InputError(f"tensor {name!r} holds NaN or infinity; the checkpoint is damaged")
  return tensor if stored == shape else tensor.T.reshape(shape)


def _stored_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """What Hugging Face stores for a leaf: matrices as [out, in], all else as it is."""
  if len(shape) == 1 or key in _OUTER:
    return shape
  inputs = shape[0] * shape[1] if key == "output" else shape[0]
  return (int(np.prod(shape)) // inputs, inputs)
