"""Weights in: Hugging Face safetensors folders and GGUF files to the parameter tree.

Both formats are reduced to one function, `read(name) -> array`, over Hugging Face's tensor names and
[out, in] matrices; `assemble` turns that into stacked parameters, one leaf at a time.
"""

from collections.abc import Callable
import json
import pathlib

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import config as config_lib
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

_OUTER = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembedding": "lm_head.weight",
}
_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "feed_forward_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_GGUF_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_GGUF_LAYER = {
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


def load(source: str | pathlib.Path) -> tuple[ModelConfig, dict]:
  """Loads a checkpoint.

  Args:
    source: a `.gguf` file, a folder of safetensors with its `config.json`, or a Hugging Face id.

  Returns:
    (the decoder's shape, its parameters as float32 NumPy arrays).

  Raises:
    InputError: nothing readable is there, or it is not a checkpoint that this decoder computes.
  """
  path = pathlib.Path(source).expanduser()
  if path.suffix == ".gguf":
    return load_gguf(path)
  if not path.is_dir():
    path = _download(str(source))
  return load_safetensors(path)


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

  def leaf(key, name, shape):
    tensor = np.asarray(read(name), np.float32)
    if key in ("embedding", "unembedding") or tensor.ndim == 1:
      converted = tensor
    elif tensor.size == np.prod(shape):
      converted = tensor.T.reshape(shape)
    else:
      converted = tensor
    if converted.shape != shape:
      raise InputError(f"tensor {name!r} has shape {tensor.shape}, which does not fit {key} {shape}")
    if not np.isfinite(converted).all():
      raise InputError(f"tensor {name!r} holds NaN or infinity; the checkpoint is damaged")
    return converted

  shapes = transformer.param_shapes(config)
  params = {key: leaf(key, _OUTER[key], shapes[key]) for key in shapes if key != "layers"}
  params["layers"] = {}
  for key, (num_layers, *shape) in shapes["layers"].items():
    stacked = np.empty((num_layers, *shape), np.float32)
    for index in range(num_layers):
      stacked[index] = leaf(key, f"model.layers.{index}.{_LAYER[key]}", tuple(shape))
    params["layers"][key] = stacked
  return params


def load_safetensors(folder: pathlib.Path) -> tuple[ModelConfig, dict]:
  """Reads `config.json` and `*.safetensors` from a folder; see `load`."""
  import safetensors

  try:
    config = config_lib.from_hugging_face(json.loads((folder / "config.json").read_text()))
  except (OSError, json.JSONDecodeError) as error:
    raise InputError(f"{folder}/config.json cannot be read ({error}); give a model folder") from error
  files = sorted(folder.glob("*.safetensors"))
  if not files:
    raise InputError(f"{folder} holds no .safetensors file (pickled .bin weights are never loaded)")
  try:
    opened = [safetensors.safe_open(file, framework="numpy") for file in files]
  except Exception as error:  # safetensors raises its own untyped errors
    raise InputError(f"{folder}: a safetensors file is damaged or cut short ({error})") from error
  where = {name: file for file in opened for name in file.keys()}

  def read(name):
    if name not in where:
      raise InputError(f"{folder} has no tensor {name!r}; is the checkpoint complete?")
    return where[name].get_tensor(name)

  return config, assemble(read, config)


def load_gguf(path: pathlib.Path) -> tuple[ModelConfig, dict]:
  """Reads a GGUF file of a Llama model, dequantised to float32; see `load`."""
  import gguf

  if not path.is_file():
    raise InputError(f"{path} does not exist; give a .gguf file, a model folder or a Hugging Face id")
  try:
    reader = gguf.GGUFReader(path)
    config = _gguf_config(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    def read(name):
      tensor = tensors[_gguf_name(name)]
      values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
      for projection, count in heads.items():
        values = _rotate_half_order(values, count) if projection in name else values
      return values

    return config, assemble(read, config)
  except InputError:
    raise
  except (KeyError, ValueError, IndexError, TypeError, NotImplementedError, OSError) as error:
    raise InputError(f"{path} is not a complete Llama GGUF file ({error}); fetch it again") from error


def _gguf_config(reader) -> ModelConfig:
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
      norm_epsilon=float(field("llama.attention.layer_norm_rms_epsilon")),
      tie_embeddings="output.weight" not in sizes,
  )


def _gguf_name(name: str) -> str:
  if name in _GGUF_OUTER:
    return _GGUF_OUTER[name]
  _, _, index, *rest = name.split(".")
  return f"blk.{index}.{_GGUF_LAYER['.'.join(rest[:-1])]}.weight"


def _rotate_half_order(matrix: np.ndarray, num_heads: int) -> np.ndarray:
  """GGUF stores rotary pairs side by side, (2i, 2i + 1); the decoder has them at (i, i + K / 2)."""
  out, width = matrix.shape
  pairs = matrix.reshape(num_heads, out // num_heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)


def _download(name: str) -> pathlib.Path:
  import huggingface_hub

  patterns = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except Exception as error:  # every kind of network and hub error
    raise InputError(
        f"{name!r} is neither a local model folder nor a model that can be fetched"
        f" ({type(error).__name__}); check the name, or give a folder"
    ) from error
