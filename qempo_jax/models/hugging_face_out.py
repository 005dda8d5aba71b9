"""Writes a `ModelConfig` as Hugging Face's `config.json`: the inverse of `hugging_face`, checked by reading it back."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.models import hugging_face
from qempo_jax.models.config import ModelConfig

_CLASSES = {
  "llama": "Llama",
  "mistral": "Mistral",
  "ministral": "Ministral",
  "ministral3": "Ministral3",
  "qwen2": "Qwen2",
  "qwen3": "Qwen3",
  "olmo2": "Olmo2",
  "olmo3": "Olmo3",
  "gemma2": "Gemma2",
  "gemma3_text": "Gemma3",
  "smollm3": "SmolLM3",
  "phi3": "Phi3",
  "granite": "Granite",
  "granitemoehybrid": "GraniteMoeHybrid",
  "qwen3_moe": "Qwen3Moe",
  "olmoe": "Olmoe",
  "mixtral": "Mixtral",
  "gpt_oss": "GptOss",
  "gemma4_text": "Gemma4",
  "qwen3_5_text": "Qwen3_5",
  "qwen3_5_moe_text": "Qwen3_5Moe",
}
_WITHOUT_BIASES = ("qwen2", "mistral", "ministral", "ministral3", "phi3", "mixtral")
_WITHOUT_WINDOWS = ("llama", "olmo2", "granite", "granitemoehybrid", "olmoe", "qwen3_5_text", "qwen3_5_moe_text")
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
# Sequence length if none is known; rotary positions continue beyond it.
_LENGTH = 8192


def to_hugging_face(
  config: ModelConfig,
  *,
  source: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  max_length: int | None = None,
  tokens: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The `config.json` of a decoder, for transformers 4 and 5.

  Args:
    config: the decoder's config.
    source: the model's original config.json, kept wherever it still describes the model.
    dtype: dtype of the weights.
    max_length: longest sequence of the training, tokens, if `source` does not state it.
    tokens: `bos_token_id` and the like, if `source` does not state them.

  Returns:
    The file's contents.

  Raises:
    InputError: no known architecture of Hugging Face computes this decoder.
  """
  written = hugging_face.language_model(source or {})
  if not source or _normal(hugging_face.from_hugging_face(source)) != _normal(config):
    family, values = _describe(config, written.get("model_type"))
    stale = {"rope_scaling", "rope_parameters", "rope_local_base_freq", "layer_types", "sliding_window_pattern"}
    written = {key: value for key, value in written.items() if key not in stale} | values
    written["architectures"] = [f"{_CLASSES[family]}ForCausalLM"]
  if "architectures" not in written:  # of a language model within another model
    written["architectures"] = [f"{_CLASSES[written['model_type']]}ForCausalLM"]
  for key, value in {"max_position_embeddings": max_length or _LENGTH, **(tokens or {})}.items():
    written.setdefault(key, value)
  written.pop("quantization_config", None)  # Weights are written as they are.
  written.pop("auto_map", None)  # Code beside the published weights, which is not beside these.
  written.setdefault("use_cache", True)
  written.setdefault("pad_token_id", None)  # Some architectures have a default that only their own vocabulary holds.
  written.pop("torch_dtype", None)
  return written | {"dtype": dtype, "torch_dtype": dtype}


def family_of(config: ModelConfig) -> str:
  """The `model_type` of the first architecture that computes this decoder."""
  return _describe(config, None)[0]


def _describe(config: ModelConfig, preferred: str | None) -> tuple[str, dict[str, Any]]:
  """(model_type, config.json) of an architecture whose description reads back as `config`."""
  for family in sorted(_CLASSES, key=lambda name: name != preferred):
    values = _values(config, family)
    try:
      if _normal(hugging_face.from_hugging_face(values)) == _normal(config):
        return family, values
    except InputError:
      continue
  raise InputError(
    f"no Hugging Face architecture of {', '.join(_CLASSES)} computes this decoder ({config}); export the config"
    " that it was imported with"
  )


def _normal(config: ModelConfig) -> ModelConfig:
  """The same decoder in canonical form, without settings of a run."""
  return dataclasses.replace(
    config,
    compute_dtype="float32",
    num_tokens=None,
    forbidden=(),
    attention="auto",
    kv_cache="auto",
    token_stats="auto",
    remat="full",
    max_length=None,
    query_scale=config.attention_scale,
    windows=config.windows if any(config.windows) else (),
    biases=tuple(sorted(config.biases)),
  )


def _values(config: ModelConfig, family: str) -> dict[str, Any]:
  gemma = family.startswith("gemma")
  values = {
    "model_type": family,
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "rms_norm_eps": config.norm_epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    "hidden_activation" if gemma else "hidden_act": _ACTIVATIONS[config.activation],
  }
  if family not in _WITHOUT_BIASES:
    values["attention_bias"] = "output" in config.biases
  if family in ("llama", "granite", "smollm3"):
    values["mlp_bias"] = "up" in config.biases
  if gemma:
    values["final_logit_softcapping"] = config.logit_softcap
  if family in ("gemma2", "gemma3_text"):
    values |= {
      "query_pre_attn_scalar": _scalar(config.attention_scale),
      "attn_logit_softcapping": config.attention_softcap,
    }
  if family == "gemma4_text":
    values |= _gemma4(config)
  if config.delta_net and family.startswith("qwen3_5"):
    keys = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    values |= {f"linear_{key}": size for key, size in zip(keys, config.delta_net)}
    values["layer_types"] = ["linear_attention" if delta else "full_attention" for delta in config.delta_blocks]
  if family == "smollm3":
    values["no_rope_layers"] = list(map(int, config.rope_layers or [True] * config.num_layers))
  if family.startswith("granite"):
    values |= {
      "attention_multiplier": config.attention_scale,
      "embedding_multiplier": config.embedding_scale,
      "residual_multiplier": config.residual_scale,
      "logits_scaling": config.logit_divisor,
    }
  if family == "granitemoehybrid":
    values |= {
      "shared_intermediate_size": config.intermediate_size,
      "position_embedding_type": None if config.rope_layers else "rope",
      "num_local_experts": 0,
      "layer_types": ["attention"] * config.num_layers,
      "mamba_n_heads": 1,  # transformers checks it against the width, with or without such blocks
    }
  if family == "qwen3_5_moe_text":
    values["shared_expert_intermediate_size"] = values.pop("intermediate_size")
  if config.num_experts and family != "gemma4_text":
    values |= {
      "num_local_experts" if family in ("mixtral", "gpt_oss") else "num_experts": config.num_experts,
      "num_experts_per_tok": config.experts_per_token,
      "moe_intermediate_size": config.expert_width or config.intermediate_size,
      "norm_topk_prob": config.normalise_experts,
    }
  if config.clamped_gate:
    values |= zip(("swiglu_alpha", "swiglu_limit"), config.clamped_gate)
  return values | _windows(config, family) | _rope(config, family)


def _gemma4(config: ModelConfig) -> dict[str, Any]:
  """Gemma 4's keys, as in its published files and as transformers 5 writes them."""
  rows, width = config.block_embedding or (config.vocab_size, 0)
  own = {"head_dim": config.global_head_dim, "num_key_value_heads": config.global_kv_heads}
  full = [index for index, window in enumerate(config.windows or (None,) * config.num_layers) if window is None]
  values = {
    "global_head_dim": config.global_head_dim,
    "num_global_key_value_heads": config.global_kv_heads,
    "attention_k_eq_v": config.keys_as_values,
    "num_kv_shared_layers": config.shared_blocks,
    "use_double_wide_mlp": config.shared_width is not None,
    "vocab_size_per_layer_input": rows,
    "hidden_size_per_layer_input": width,
    "enable_moe_block": bool(config.num_experts),
    "per_layer_config": {str(index): own for index in full},
  }
  if config.num_experts:
    values |= {"num_experts": config.num_experts, "top_k_experts": config.experts_per_token}
    values["moe_intermediate_size"] = config.expert_width
  return values


def _scalar(scale: float) -> int | float:
  """n of scale = 1 / sqrt(n), an integer if possible."""
  whole = round(scale**-2)
  return whole if whole**-0.5 == scale else scale**-2


def _windows(config: ModelConfig, family: str) -> dict[str, Any]:
  sizes = {size for size in config.windows if size is not None}
  window = sizes.pop() if len(sizes) == 1 else None
  if family in _WITHOUT_WINDOWS:
    return {}
  if family in ("mistral", "ministral3", "phi3", "mixtral"):
    return {"sliding_window": window}
  if family == "qwen3_moe":
    return {"use_sliding_window": window is not None, "sliding_window": window}
  slides = [size is not None for size in config.windows] or [False] * config.num_layers
  values = {"layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides]}
  if family.startswith("gemma") or family in ("olmo3", "ministral", "gpt_oss"):
    return values | {"sliding_window": window or 4096}
  late = slides.index(True) if any(slides) else config.num_layers
  return values | {"use_sliding_window": any(slides), "sliding_window": window, "max_window_layers": late}


def _rope(config: ModelConfig, family: str) -> dict[str, Any]:
  """Rotary fields in the formats of transformers 4 (flat) and 5 (`rope_parameters`)."""
  scaling = _scaling(config)
  if config.query_growth:
    growth, length = config.query_growth
    scaling |= {"llama_4_scaling_beta": growth, "original_max_position_embeddings": length}
  full = {"rope_type": "default", **scaling, "rope_theta": config.rope_theta}
  flat = {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}
  if config.rope_scaling and config.rope_scaling.kind == "dynamic":
    flat["max_position_embeddings"] = config.rope_scaling.original_length
  if family == "phi3":
    part = config.rotated / config.head_dim
    length = config.rope_scaling.original_length if config.rope_scaling else _LENGTH
    flat |= {"partial_rotary_factor": part, "original_max_position_embeddings": length}
    full["partial_rotary_factor"] = part
  if family.startswith("qwen3_5"):
    full["partial_rotary_factor"] = config.rotated / config.head_dim
  if family not in ("gemma3_text", "gemma4_text", "olmo3"):
    return flat | {"rope_parameters": full}
  local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
  sliding = {"rope_type": "default", "rope_theta": local}
  nested = {"full_attention": full, "sliding_attention": sliding}
  if family == "gemma4_text":
    return {"rope_parameters": nested}
  return flat | {"rope_local_base_freq": local, "rope_parameters": nested}


def _scaling(config: ModelConfig) -> dict[str, Any]:
  scaling = config.rope_scaling
  if scaling is None:
    return {}
  values = {"rope_type": scaling.kind}
  if scaling.kind != "longrope" and (scaling.kind, scaling.factor) != ("proportional", 1.0):
    values["factor"] = scaling.factor
  if scaling.kind in ("llama3", "yarn", "longrope"):
    values["original_max_position_embeddings"] = scaling.original_length
  ends = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
  if scaling.kind in ends:
    values |= zip(ends[scaling.kind], (scaling.low_frequency_factor, scaling.high_frequency_factor))
  if scaling.kind == "proportional":
    values["partial_rotary_factor"] = scaling.part
  if scaling.kind == "yarn":
    values["truncate"] = scaling.truncate
  if scaling.kind == "longrope":
    values |= {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
  if scaling.kind in ("yarn", "longrope"):
    values["attention_factor"] = scaling.attention_factor
  return values
