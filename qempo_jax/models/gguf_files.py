"""Reads GGUF files, dequantised."""

from collections.abc import Callable
import dataclasses
import pathlib

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import hugging_face
from qempo_jax.models import positions
from qempo_jax.models import tensor_names
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling

_OUTER = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
}
# Architecture of a GGUF file -> Hugging Face's model_type.
_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_KEYS = {
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "block_count": "num_hidden_layers",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.key_length": "head_dim",
  "attention.sliding_window": "sliding_window",
  "rope.freq_base": "rope_theta",
}
_OPTIONAL = {"attention.head_count_kv", "attention.key_length", "attention.sliding_window", "rope.freq_base"}
_FREQUENCIES = "rope_freqs.weight"
_LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_length": 8192}
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
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
}
_BOTH_NORMS = {
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
}


def load(path: pathlib.Path, make_leaf: Callable) -> tuple[ModelConfig, dict]:
  """Reads a GGUF file, dequantised tensor by tensor; see `conversion.load`.

  Args:
    path: the file.
    make_leaf: builds a leaf from its parts; see `tensor_names.assemble`.

  Returns:
    (the decoder's config, its parameters).

  Raises:
    InputError: the file is damaged, or its architecture or rotary scaling is not supported.
  """
  import gguf

  if not path.is_file():
    raise InputError(f"{path} does not exist; give a .gguf file, a model folder or a Hugging Face id")
  try:
    reader = gguf.GGUFReader(path)
    if "split.count" in reader.fields and (count := int(reader.fields["split.count"].contents())) > 1:
      raise InputError(f"{path} is one of {count} files of a model; join them with llama-gguf-split --merge")
    architecture = reader.fields["general.architecture"].contents()
    config = _config(reader, architecture)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if _FREQUENCIES in tensors:
      config = _llama3(config, tensors.pop(_FREQUENCIES).data)
    if extra := set(tensors) - {_name(name, config) for name in tensor_names.expected(config)}:
      raise InputError(f"{path} holds {tensor_names.listed(extra)}, which this decoder does not compute")
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads} if architecture == "llama" else {}

    def read(name):
      tensor = tensors[_name(name, config)]
      values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
      for projection, count in heads.items():
        values = _rotate_half_order(values, count) if projection in name else values
      return values - config.norm_offset if "norm" in name else values

    return config, tensor_names.assemble(read, config, make_leaf)
  except InputError:
    raise
  except (KeyError, ValueError, IndexError, TypeError, NotImplementedError, OSError) as error:
    raise InputError(f"{path} is not a complete GGUF file ({error}); fetch it again") from error


def _config(reader, architecture: str) -> ModelConfig:
  """The config, with the options of the Hugging Face architecture."""
  field = lambda key, default=None: reader.fields[key].contents() if key in reader.fields else default
  if architecture not in _ARCHITECTURES:
    known = ", ".join(map(repr, _ARCHITECTURES))
    raise InputError(f"GGUF architecture {architecture!r} is not supported; this decoder reads {known}")
  sizes = {tensor.name: tensor.shape for tensor in reader.tensors}
  values = {
    "model_type": _ARCHITECTURES[architecture],
    "vocab_size": int(sizes["token_embd.weight"][1]),
    "tie_word_embeddings": "output.weight" not in sizes,
  }
  for key, name in _KEYS.items():
    if f"{architecture}.{key}" in reader.fields or key not in _OPTIONAL:
      values[name] = reader.fields[f"{architecture}.{key}"].contents()
  values.setdefault("num_key_value_heads", None)  # as many as of queries
  kind = field(f"{architecture}.rope.scaling.type", "none")
  if kind == "linear":
    values["rope_scaling"] = {"rope_type": kind, "factor": field(f"{architecture}.rope.scaling.factor", 1.0)}
  elif kind != "none":
    raise InputError(
      f"{architecture}.rope.scaling.type {kind!r} is not supported; this decoder computes 'none' and 'linear'"
    )
  if architecture == "gemma3":  # The largest, of 62 blocks, alone scales by D / H; the others by the width of a head.
    width = values["hidden_size"] // values["num_attention_heads"]
    values["query_pre_attn_scalar"] = width if values["num_hidden_layers"] == 62 else values["head_dim"]
    values["final_logit_softcapping"] = field("gemma3.final_logit_softcapping")
  return hugging_face.from_hugging_face(values)


def _llama3(config: ModelConfig, divisors: np.ndarray) -> ModelConfig:
  """The config with the scaling of Llama 3.1 to 3.3, which the file holds as a divisor of each rotary pair's frequency."""
  found = dataclasses.replace(config, rope_scaling=RopeScaling("llama3", float(divisors.max()), **_LLAMA3))
  frequencies = lambda scaling: np.asarray(positions.rope_frequencies(config.head_dim, config.rope_theta, scaling))
  if divisors.shape != (config.head_dim // 2,) or not np.allclose(
    frequencies(None) / frequencies(found.rope_scaling), divisors, rtol=1e-4
  ):
    raise InputError(f"{_FREQUENCIES} is not that of Llama 3.1 to 3.3, the only one that this decoder computes")
  return found


def _name(name: str, config: ModelConfig) -> str:
  if name in _OUTER:
    return _OUTER[name]
  _, _, index, *rest = name.split(".")
  modules = _LAYER | (_BOTH_NORMS if config.norm_placement == "both" else {})
  return f"blk.{index}.{modules['.'.join(rest[:-1])]}.{rest[-1]}"


def _rotate_half_order(matrix: np.ndarray, num_heads: int) -> np.ndarray:
  """Reorders rotary pairs from GGUF's (2i, 2i + 1) to the decoder's (i, i + K / 2)."""
  out, width = matrix.shape
  pairs = matrix.reshape(num_heads, out // num_heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)
