"""Reads GGUF files of Llama models, dequantised."""

from collections.abc import Callable
import pathlib

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import tensor_names
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling

_OUTER = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
}
_LAYER = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def load(path: pathlib.Path, make_leaf: Callable) -> tuple[ModelConfig, dict]:
  """Reads a GGUF file of a Llama model, dequantised tensor by tensor; see `conversion.load`.

  Args:
    path: the file.
    make_leaf: builds a leaf from its parts; see `tensor_names.assemble`.
  """
  import gguf

  if not path.is_file():
    raise InputError(f"{path} does not exist; give a .gguf file, a model folder or a Hugging Face id")
  try:
    reader = gguf.GGUFReader(path)
    config = _config(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if extra := set(tensors) - {_name(name) for name in tensor_names.expected(config)}:
      raise InputError(f"{path} holds {tensor_names.listed(extra)}, which this decoder does not compute")
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    def read(name):
      tensor = tensors[_name(name)]
      values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
      for projection, count in heads.items():
        values = _rotate_half_order(values, count) if projection in name else values
      return values

    return config, tensor_names.assemble(read, config, make_leaf)
  except InputError:
    raise
  except (KeyError, ValueError, IndexError, TypeError, NotImplementedError, OSError) as error:
    raise InputError(f"{path} is not a complete Llama GGUF file ({error}); fetch it again") from error


def _config(reader) -> ModelConfig:
  field = lambda key: reader.fields[key].contents()
  architecture = field("general.architecture")
  if architecture != "llama":
    raise InputError(f"GGUF architecture {architecture!r} is not supported; this decoder reads 'llama'")
  sizes = {tensor.name: tensor.shape for tensor in reader.tensors}
  width, num_heads = field("llama.embedding_length"), field("llama.attention.head_count")
  return ModelConfig(
    vocab_size=int(sizes["token_embd.weight"][1]),
    hidden_size=width,
    intermediate_size=field("llama.feed_forward_length"),
    num_layers=field("llama.block_count"),
    num_heads=num_heads,
    num_kv_heads=field("llama.attention.head_count_kv"),
    head_dim=width // num_heads,
    rope_theta=float(field("llama.rope.freq_base")),
    rope_scaling=_rope_scaling(reader),
    norm_epsilon=float(field("llama.attention.layer_norm_rms_epsilon")),
    tie_embeddings="output.weight" not in sizes,
  )


def _rope_scaling(reader) -> RopeScaling | None:
  field = lambda key, default: reader.fields[key].contents() if key in reader.fields else default
  kind = field("llama.rope.scaling.type", "none")
  if kind == "none":
    return None
  if kind == "linear":
    return RopeScaling("linear", float(field("llama.rope.scaling.factor", 1.0)))
  raise InputError(f"llama.rope.scaling.type {kind!r} is not supported; this decoder computes 'none' and 'linear'")


def _name(name: str) -> str:
  if name in _OUTER:
    return _OUTER[name]
  _, _, index, *rest = name.split(".")
  return f"blk.{index}.{_LAYER['.'.join(rest[:-1])]}.weight"


def _rotate_half_order(matrix: np.ndarray, num_heads: int) -> np.ndarray:
  """Reorders rotary pairs from GGUF's (2i, 2i + 1) to the decoder's (i, i + K / 2)."""
  out, width = matrix.shape
  pairs = matrix.reshape(num_heads, out // num_heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)
