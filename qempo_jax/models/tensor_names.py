"""Maps Hugging Face's tensors, named one by one, to the parameter tree, stacked over the blocks.

`tensor_specs` is the only description of names and shapes; reading, writing and adapters all follow it.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models import stacks
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import ModelConfig

_OUTER = {
  "embedding": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "unembedding": "lm_head.weight",
  "block_embedding": "model.embed_tokens_per_layer.weight",
  "block_projection": "model.per_layer_model_projection.weight",
  "block_projection_norm": "model.per_layer_projection_norm.weight",
}
_MODULES = {
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "output": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
  "router": "mlp.gate",
  "expert_gate": "mlp.experts.{}.gate_proj",
  "expert_up": "mlp.experts.{}.up_proj",
  "expert_down": "mlp.experts.{}.down_proj",
  "query_norm": "self_attn.q_norm",
  "key_norm": "self_attn.k_norm",
  "sinks": "self_attn.sinks",
  "delta_query": "linear_attn.in_proj_qkv",
  "delta_key": "linear_attn.in_proj_qkv",
  "delta_value": "linear_attn.in_proj_qkv",
  "delta_gate": "linear_attn.in_proj_z",
  "delta_rate": "linear_attn.in_proj_b",
  "delta_decay": "linear_attn.in_proj_a",
  "delta_convolution": "linear_attn.conv1d",
  "delta_norm": "linear_attn.norm",
  "delta_output": "linear_attn.out_proj",
  "delta_log_rate": "linear_attn.A_log",
  "delta_step": "linear_attn.dt_bias",
  "block_scale": "layer_scalar",
  "block_gate": "per_layer_input_gate",
  "block_output": "per_layer_projection",
  "block_norm": "post_per_layer_input_norm",
}
_BARE = ("sinks", "delta_log_rate", "delta_step", "block_scale", "router_norm", "expert_scale")  # No ".weight".
# Names that differ in other layouts. Projections with one name are one tensor, fused in the order of the parameter tree.
_LAYOUTS = {
  "llama": {},
  "phi3": dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj")
  | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
  "granitemoehybrid": dict.fromkeys(("gate", "up"), "shared_mlp.input_linear") | {"down": "shared_mlp.output_linear"},
  "mixtral": {
    "router": "block_sparse_moe.gate",
    "expert_gate": "block_sparse_moe.experts.{}.w1",
    "expert_up": "block_sparse_moe.experts.{}.w3",
    "expert_down": "block_sparse_moe.experts.{}.w2",
  },
  "gemma4": {
    "router": "router.proj",
    "router_norm": "router.scale",
    "expert_scale": "router.per_expert_scale",
    "dense_post_norm": "post_feedforward_layernorm_1",
    "expert_norm": "pre_feedforward_layernorm_2",
    "expert_post_norm": "post_feedforward_layernorm_2",
  }
  | dict(zip(EXPERTS, (*("experts.gate_up_proj",) * 2, "experts.down_proj"))),
  "qwen3_5_moe": {name: f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")}
  | {"dense_factor": "mlp.shared_expert_gate"},
  "gpt_oss": {"router": "mlp.router"}
  | dict(zip(EXPERTS, (*("mlp.experts.gate_up_proj",) * 2, "mlp.experts.down_proj"))),
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
  """A leaf's part of the parameter tree and its place in a checkpoint.

  Attributes:
    name: Hugging Face's name of the tensor; fused projections share one.
    key: the leaf's key, under "layers" if `index` is given.
    index: the part's index in the leaf: (place,), (place, expert), or () outside the blocks; the place is that among the
      blocks that have the leaf.
    shape: the part's shape.
    stored: Hugging Face's shape of the tensor: matrices as [out, in], others unchanged.
    start: first row of the part in a fused tensor; with `alternating`, first index on the last axis.
    alternating: parts that take turns on the last axis of a tensor of all experts, [experts, in, out]; 0: a tensor of
      another kind, such as [experts, out, in].
  """

  name: str
  key: str
  index: tuple[int, ...]
  shape: tuple[int, ...]
  stored: tuple[int, ...]
  start: int = 0
  alternating: int = 0

  def from_hugging_face(self, tensor: np.ndarray) -> np.ndarray:
    """Converts Hugging Face's layout to the part's."""
    if self.alternating:
      return tensor[..., self.start :: self.alternating]
    if self._is_matrix:
      return tensor[self.start : self.start + self._rows].T.reshape(self.shape)
    if self._holds_experts:
      return np.swapaxes(tensor[:, self.start : self.start + self.shape[2]], 1, 2)
    return tensor.reshape(self.shape)

  def to_hugging_face(self, part: np.ndarray) -> np.ndarray:
    """Converts the part's layout to Hugging Face's, its own rows of a fused tensor."""
    if self._is_matrix:
      return part.reshape(self.stored[1], self._rows).T
    if self._holds_experts:
      return np.swapaxes(part, 1, 2)
    return part if self.alternating else part.reshape(self.stored)

  @property
  def _is_matrix(self) -> bool:
    return bool(self.index) and len(self.shape) > 1 and len(self.stored) == 2 and not self.alternating

  @property
  def _holds_experts(self) -> bool:
    return self.key in EXPERTS and len(self.shape) == 3 and not self.alternating

  @property
  def _rows(self) -> int:
    return int(np.prod(self.shape)) // self.stored[1]


def fuse(specs: list[TensorSpec], parts: list[np.ndarray]) -> np.ndarray:
  """A tensor of its parts, each from `to_hugging_face`, in the order of `tensor_specs`."""
  if len(parts) == 1:
    return parts[0]
  if specs[0].alternating:
    return np.stack(parts, axis=-1).reshape(specs[0].stored)
  return np.concatenate(parts, axis=parts[0].ndim - 2)


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
  """All parts of a checkpoint with this config, block by block; those of a fused tensor follow one another."""
  shapes = parameters.param_shapes(config)
  for key, shape in shapes.items():
    if key != "layers":
      yield TensorSpec(_OUTER[key], key, (), shape, shape)
  seen = collections.Counter()
  for block, kind in enumerate(config.kinds):
    own = {key: shape for key, (_, *shape) in shapes["layers"].items() if stacks.has(key, kind)}
    named = {key: block_name(key, block, config) for key in own}
    starts = collections.Counter()
    for key, shape in own.items():
      name, place = named[key], seen[key]
      seen[key] += 1
      if key in EXPERTS and "{}" in name:
        for expert in range(config.num_experts):
          yield TensorSpec(name.format(expert), key, (place, expert), tuple(shape[1:]), tuple(shape[:0:-1]))
        continue
      parts = [other for other in own if named[other] == name]
      if key.startswith("expert_") and config.layout == "gpt_oss":
        stored = (*shape[:-1], shape[-1] * len(parts))
        yield TensorSpec(name, key, (place,), tuple(shape), stored, parts.index(key), len(parts))
        continue
      axis = 1 if key in EXPERTS else 0
      fused = {other: _stored_shape(other, tuple(own[other])) for other in parts}
      stored = (*fused[key][:axis], sum(shape[axis] for shape in fused.values()), *fused[key][axis + 1 :])
      yield TensorSpec(name, key, (place,), tuple(shape), stored, starts[name])
      starts[name] += fused[key][axis]


def block_name(key: str, block: int, config: ModelConfig) -> str:
  """Hugging Face's name of a block's leaf, with {} for an expert's number."""
  module = stacks.plain(key).removesuffix("_bias")
  kind = "bias" if key.endswith("_bias") else "weight"
  names = _MODULES | _NORMS[config.norm_placement] | _LAYOUTS[config.layout]
  name = f"model.layers.{block}.{names[module]}"
  if module in _BARE or config.layout in ("gpt_oss", "gemma4") and module in EXPERTS:
    return f"{name}_bias" if kind == "bias" else name
  return f"{name}.{kind}"


def expected(config: ModelConfig) -> list[str]:
  """Hugging Face's names of all tensors of a checkpoint with this config."""
  return list(dict.fromkeys(spec.name for spec in tensor_specs(config)))


def assemble(read: Callable[[str], np.ndarray], config: ModelConfig, make_leaf: Callable) -> dict:
  """Builds the parameter tree from tensors with Hugging Face's names and shapes.

  Args:
    read: returns a tensor by its Hugging Face name; matrices are [out, in].
    config: the decoder's config.
    make_leaf: `make_leaf(path, shape, rows)` builds the leaf of a path such as ("layers", "query") from its parts, an
      iterator of (index, array); see `placing`.

  Returns:
    The parameters.

  Raises:
    InputError: a tensor does not have the config's shape, or is not finite.
  """
  by_path: dict[tuple[str, ...], list[TensorSpec]] = {}
  for spec in tensor_specs(config):
    path = ("layers", spec.key) if spec.index else (spec.key,)
    by_path.setdefault(path, []).append(spec)
  params, shapes = {"layers": {}}, parameters.param_shapes(config)
  for path, parts in by_path.items():
    shape = (shapes["layers"] if len(path) > 1 else shapes)[path[-1]]
    leaf = make_leaf(path, shape, ((spec.index, _checked(read, spec)) for spec in parts))
    (params["layers"] if len(path) > 1 else params)[path[-1]] = leaf
  return params


def check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
  """Raises InputError if a tensor does not have the spec's shape."""
  if tuple(shape) != spec.stored:
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
  if key == "delta_convolution":
    return (shape[0], 1, shape[1])
  if key in EXPERTS:
    return (shape[0], shape[2], shape[1])
  if len(shape) == 1:
    return shape
  inputs = shape[0] * shape[1] if key.endswith("output") and len(shape) == 3 else shape[0]
  return (int(np.prod(shape)) // inputs, inputs)
