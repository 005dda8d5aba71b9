"""Configs of published models, for planning memory, sharding and compilation without their weights.

Values are those of the models' own config.json on the Hugging Face hub (of the instruction-tuned model, if the two
differ), but those of Qwen3.5 and Gemma 4, which are as other training code states them. `get` reads them by the same rules as a checkpoint's.
"""

import difflib
import math
from typing import Any

import jax

from qempo_jax.errors import InputError
from qempo_jax.models import hugging_face
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig

_SIZES = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
)


def _llama3(factor: float) -> dict[str, Any]:
  ends = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
  return {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": factor, **ends}}


_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
_QWEN = {"rope_theta": 1e6, "rms_norm_eps": 1e-6}
_OLMO = {"rope_theta": 500000.0, "rms_norm_eps": 1e-6} | _UNTIED
_GEMMA2 = {"rms_norm_eps": 1e-6, "sliding_window": 4096, "query_pre_attn_scalar": 256}
_GEMMA3 = {"rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256}
_LINEAR8 = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_UNSLID = {"sliding_window": None} | _UNTIED
_OLMO3 = _OLMO | {
  "sliding_window": 4096,
  "rope_scaling": {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32,
    "beta_slow": 1,
  },
}
_GEMMA4 = {"rms_norm_eps": 1e-6, "sliding_window": 1024, "final_logit_softcapping": 30.0, "attention_k_eq_v": True}
_GEMMA4 |= {"hidden_size_per_layer_input": 0}
_QWEN35 = {"rms_norm_eps": 1e-6, "rope_theta": 1e7}
_GRANITE = _TIED | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}


def _mixture(experts: int, chosen: int) -> dict[str, Any]:
  return {"num_experts": experts, "num_experts_per_tok": chosen}


# Name -> (model_type, values of _SIZES, other differences from the architecture's defaults).
_PRESETS = {
  "smollm2-135m": ("llama", (49152, 576, 1536, 30, 9, 3, 64), _TIED | {"rope_theta": 1e5}),
  "smollm2-360m": ("llama", (49152, 960, 2560, 32, 15, 5, 64), _TIED | {"rope_theta": 1e5}),
  "smollm2-1.7b": ("llama", (49152, 2048, 8192, 24, 32, 32, 64), _TIED | {"rope_theta": 1.3e5}),
  "llama-2-7b": ("llama", (32000, 4096, 11008, 32, 32, 32, 128), _UNTIED),
  "llama-3.1-8b": ("llama", (128256, 4096, 14336, 32, 32, 8, 128), _UNTIED | _llama3(8.0)),
  "llama-3.1-70b": ("llama", (128256, 8192, 28672, 80, 64, 8, 128), _UNTIED | _llama3(8.0)),
  "llama-3.3-70b": ("llama", (128256, 8192, 28672, 80, 64, 8, 128), _UNTIED | _llama3(8.0)),
  "llama-3.2-1b": ("llama", (128256, 2048, 8192, 16, 32, 8, 64), _TIED | _llama3(32.0)),
  "llama-3.2-3b": ("llama", (128256, 3072, 8192, 28, 24, 8, 128), _TIED | _llama3(32.0)),
  "mistral-7b-v0.3": (
    "mistral",
    (32768, 4096, 14336, 32, 32, 8, 128),
    _UNSLID | {"rope_theta": 1e6},
  ),
  "ministral-8b": (
    "mistral",
    (131072, 4096, 12288, 36, 32, 8, 128),
    _UNTIED | {"rope_theta": 1e8, "sliding_window": 32768},
  ),
  "ministral-3-8b-text": ("ministral3", (131072, 4096, 14336, 34, 32, 8, 128), _UNTIED),
  "mistral-small-24b": ("mistral", (131072, 5120, 32768, 40, 32, 8, 128), _UNSLID | {"rope_theta": 1e8}),
  "mixtral-8x7b": ("mixtral", (32000, 4096, 14336, 32, 32, 8, 128), _UNTIED | {"rope_theta": 1e6}),
  "qwen2.5-0.5b": ("qwen2", (151936, 896, 4864, 24, 14, 2, 64), _TIED | _QWEN),
  "qwen2.5-1.5b": ("qwen2", (151936, 1536, 8960, 28, 12, 2, 128), _TIED | _QWEN),
  "qwen2.5-3b": ("qwen2", (151936, 2048, 11008, 36, 16, 2, 128), _TIED | _QWEN),
  "qwen2.5-7b": ("qwen2", (152064, 3584, 18944, 28, 28, 4, 128), _UNTIED | _QWEN),
  "qwen2.5-14b": ("qwen2", (152064, 5120, 13824, 48, 40, 8, 128), _UNTIED | _QWEN),
  "qwen2.5-32b": ("qwen2", (152064, 5120, 27648, 64, 40, 8, 128), _UNTIED | _QWEN),
  "qwen2.5-72b": ("qwen2", (152064, 8192, 29568, 80, 64, 8, 128), _UNTIED | _QWEN),
  "qwen3-0.6b": ("qwen3", (151936, 1024, 3072, 28, 16, 8, 128), _TIED | _QWEN),
  "qwen3-1.7b": ("qwen3", (151936, 2048, 6144, 28, 16, 8, 128), _TIED | _QWEN),
  "qwen3-4b": ("qwen3", (151936, 2560, 9728, 36, 32, 8, 128), _TIED | _QWEN),
  "qwen3-8b": ("qwen3", (151936, 4096, 12288, 36, 32, 8, 128), _UNTIED | _QWEN),
  "qwen3-14b": ("qwen3", (151936, 5120, 17408, 40, 40, 8, 128), _UNTIED | _QWEN),
  "qwen3-32b": ("qwen3", (151936, 5120, 25600, 64, 64, 8, 128), _UNTIED | _QWEN),
  "qwen3-30b-a3b": (
    "qwen3_moe",
    (151936, 2048, 768, 48, 32, 4, 128),
    _UNTIED | _QWEN | _mixture(128, 8) | {"moe_intermediate_size": 768, "norm_topk_prob": True},
  ),
  "qwen3-235b-a22b": (
    "qwen3_moe",
    (151936, 4096, 1536, 94, 64, 4, 128),
    _UNTIED | _QWEN | _mixture(128, 8) | {"moe_intermediate_size": 1536, "norm_topk_prob": True},
  ),
  "qwen3.5-0.8b": (
    "qwen3_5_text",
    (248320, 1024, 3584, 24, 8, 2, 256),
    _TIED | _QWEN35 | {"linear_num_value_heads": 16},
  ),
  "qwen3.5-9b": ("qwen3_5_text", (248320, 4096, 12288, 32, 16, 4, 256), _UNTIED | _QWEN35),
  "qwen3.5-27b": (
    "qwen3_5_text",
    (248320, 5120, 17408, 64, 24, 4, 256),
    _UNTIED | _QWEN35 | {"linear_num_value_heads": 48},
  ),
  "qwen3.5-35b-a3b": ("qwen3_5_moe_text", (248320, 2048, 512, 40, 16, 2, 256), _UNTIED | _QWEN35),
  "gpt-oss-20b": ("gpt_oss", (201088, 2880, 2880, 24, 64, 8, 64), _UNTIED | {"num_local_experts": 32}),
  "gpt-oss-120b": ("gpt_oss", (201088, 2880, 2880, 36, 64, 8, 64), _UNTIED | {"num_local_experts": 128}),
  "gemma-2-2b": ("gemma2", (256000, 2304, 9216, 26, 8, 4, 256), _GEMMA2),
  "gemma-2-9b": ("gemma2", (256000, 3584, 14336, 42, 16, 8, 256), _GEMMA2),
  "gemma-2-27b": ("gemma2", (256000, 4608, 36864, 46, 32, 16, 128), _GEMMA2 | {"query_pre_attn_scalar": 144}),
  "gemma-3-1b": ("gemma3_text", (262144, 1152, 6912, 26, 4, 1, 256), _GEMMA3 | {"sliding_window": 512}),
  "gemma-3-4b-text": (
    "gemma3_text",
    (262208, 2560, 10240, 34, 8, 4, 256),
    _GEMMA3 | _LINEAR8 | {"sliding_window": 1024},
  ),
  "gemma-4-26b-a4b-text": (
    "gemma4_text",
    (262144, 2816, 2112, 30, 16, 8, 256),
    _GEMMA4
    | {"num_global_key_value_heads": 2, "enable_moe_block": True}
    | {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704},
  ),
  "gemma-4-31b-text": (
    "gemma4_text",
    (262144, 5376, 21504, 60, 32, 16, 256),
    _GEMMA4 | {"num_global_key_value_heads": 4},
  ),
  "olmo-2-1b": ("olmo2", (100352, 2048, 8192, 16, 16, 16, 128), _OLMO),
  "olmo-2-7b": ("olmo2", (100352, 4096, 11008, 32, 32, 32, 128), _OLMO),
  "olmo-2-13b": ("olmo2", (100352, 5120, 13824, 40, 40, 40, 128), _OLMO),
  "olmo-3-7b": ("olmo3", (100278, 4096, 11008, 32, 32, 32, 128), _OLMO3),
  "olmo-3-32b": ("olmo3", (100278, 5120, 27648, 64, 40, 8, 128), _OLMO3),
  "olmoe-1b-7b": ("olmoe", (50304, 2048, 1024, 16, 16, 16, 128), _UNTIED | _mixture(64, 8)),
  "smollm3-3b": ("smollm3", (128256, 2048, 11008, 36, 16, 4, 128), _TIED | {"rope_theta": 5e6, "rms_norm_eps": 1e-6}),
  "phi-3-mini-4k": ("phi3", (32064, 3072, 8192, 32, 32, 32, 96), _UNTIED | {"sliding_window": 2047}),
  "phi-4": ("phi3", (100352, 5120, 17920, 40, 40, 10, 128), _UNSLID | {"rope_theta": 250000.0}),
  "granite-3.1-2b": (
    "granite",
    (49155, 2048, 8192, 40, 32, 8, 64),
    _GRANITE | {"rope_theta": 5e6, "attention_multiplier": 0.015625, "logits_scaling": 8.0},
  ),
  "granite-3.1-8b": (
    "granite",
    (49155, 4096, 12800, 40, 32, 8, 128),
    _GRANITE | {"rope_theta": 1e7, "attention_multiplier": 0.0078125, "logits_scaling": 16.0},
  ),
}
NAMES = tuple(_PRESETS)


def get(name: str) -> ModelConfig:
  """Config of a published model.

  Args:
    name: one of `NAMES`.

  Returns:
    Its config.

  Raises:
    InputError: there is no preset of that name.
  """
  if name not in _PRESETS:
    close = difflib.get_close_matches(name, NAMES, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"presets are {', '.join(NAMES)}"
    raise InputError(f"there is no preset {name!r}; {hint}")
  model_type, sizes, options = _PRESETS[name]
  values = {"model_type": model_type, "rms_norm_eps": 1e-5} | dict(zip(_SIZES, sizes)) | options
  return hugging_face.from_hugging_face(values)


def num_params(config: ModelConfig) -> int:
  """Number of parameters of a decoder; a tied output projection counts once."""
  shapes = parameters.param_shapes(config)
  return sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)))
