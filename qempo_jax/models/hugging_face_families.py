"""Architectures of Hugging Face that the decoder computes: properties that a config.json does not state."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from qempo_jax.models.config import EXPERTS


@dataclasses.dataclass(frozen=True)
class Family:
  """Properties of a `model_type` that its config.json does not state.

  Attributes:
    options: fields of `ModelConfig` that belong to the architecture.
    defaults: values that PyTorch transformers fills in for missing keys of config.json.
    fixed: values of keys that other families read, and that PyTorch transformers does not read here.
    windows: blocks with the sliding window: "none", "all", "typed" (all, unless layer_types says otherwise), "late"
      (from max_window_layers on), "pattern" (all but every sliding_window_pattern-th) or "unrotated" (those without
      RoPE).
    nested_rope: rotary parameters are given for each kind of block.
    partial_rope: partial_rotary_factor is read; PyTorch transformers ignores it elsewhere.
    experts: its feed-forward layers are mixtures of experts.
    biases: matrices that always have a bias, besides those that config.json names.
    linear: its other blocks are gated delta nets.
    unread: keys that must be empty, since PyTorch transformers has them here and ignores them.
  """

  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  windows: str = "none"
  nested_rope: bool = False
  partial_rope: bool = False
  experts: bool = False
  biases: tuple[str, ...] = ()
  linear: bool = False
  unread: tuple[str, ...] = ()
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_OPTIONS = {"norm_placement": "both", "norm_offset": 1.0}
_GEMMA = {
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "num_key_value_heads": 4,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "tie_word_embeddings": True,
}
_MISTRAL = {"num_key_value_heads": 8}
_MINISTRAL3_ROPE = {
  "rope_type": "yarn",
  "rope_theta": 1e6,
  "factor": 16.0,
  "original_max_position_embeddings": 16384,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  "llama_4_scaling_beta": 0.1,
}
_GPT_OSS_ROPE = {
  "rope_type": "yarn",
  "factor": 32.0,
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "truncate": False,
  "original_max_position_embeddings": 4096,
}
_NO_BIAS = {"attention_bias": False}  # of the kind that the key adds
_QWEN35_OPTIONS = {"qk_norm": "head", "norm_offset": 1.0, "gated_attention": True}
_QWEN35 = {
  "head_dim": 256,
  "num_key_value_heads": 4,
  "partial_rotary_factor": 0.25,
  "full_attention_interval": 4,
  "linear_conv_kernel_dim": 4,
  "linear_key_head_dim": 128,
  "linear_value_head_dim": 128,
  "linear_num_key_heads": 16,
  "linear_num_value_heads": 32,
}
GRANITE = dict.fromkeys(("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0)
FAMILIES = {
  "llama": Family(defaults={"mlp_bias": False}),
  "mistral": Family(defaults=_MISTRAL | {"sliding_window": 4096}, windows="all", fixed=_NO_BIAS),
  "ministral": Family(defaults=_MISTRAL | {"sliding_window": 4096}, windows="typed", fixed=_NO_BIAS),
  "ministral3": Family(
    defaults=_MISTRAL | {"head_dim": 128, "rope_parameters": _MINISTRAL3_ROPE}, windows="all", fixed=_NO_BIAS
  ),
  "qwen2": Family({"biases": ("query", "key", "value")}, _QWEN, "late", fixed=_NO_BIAS),
  "qwen3": Family({"qk_norm": "head"}, _QWEN | {"head_dim": 128}, "late"),
  "olmo2": Family({"norm_placement": "post", "qk_norm": "width"}),
  "olmo3": Family(
    {"norm_placement": "post", "qk_norm": "width"},
    {"sliding_window": 4096, "rope_theta": 5e5, "rope_local_base_freq": 5e5},
    "pattern",
    nested_rope=True,
    fixed={"sliding_window_pattern": 4},
  ),
  "gemma2": Family(
    _GEMMA_OPTIONS,
    _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "pattern",
    fixed={"sliding_window_pattern": 2},
  ),
  "gemma3_text": Family(
    _GEMMA_OPTIONS | {"qk_norm": "head"},
    _GEMMA
    | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    | dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping")),
    "pattern",
    nested_rope=True,
    unread=("attn_logit_softcapping",),
  ),
  "smollm3": Family(
    defaults={
      "use_sliding_window": False,
      "rope_theta": 2e6,
      "no_rope_layers": None,
      "no_rope_layer_interval": 4,
      "num_key_value_heads": 4,
      "tie_word_embeddings": True,
      "mlp_bias": False,
    },
    windows="unrotated",
  ),
  "phi3": Family(
    {"layout": "phi3"}, {"original_max_position_embeddings": 4096}, "all", partial_rope=True, fixed=_NO_BIAS
  ),
  "granite": Family(defaults=GRANITE | {"mlp_bias": False}),
  "granitemoehybrid": Family(
    {"layout": "granitemoehybrid"},
    GRANITE
    | {
      "num_local_experts": 8,
      "layer_types": ["mamba"],
      "position_embedding_type": None,
      "shared_intermediate_size": 1024,
    },
  ),
  "qwen3_moe": Family(
    {"qk_norm": "head"},
    {
      "use_sliding_window": False,
      "sliding_window": 4096,
      "num_key_value_heads": 4,
      "num_experts": 128,
      "num_experts_per_tok": 8,
      "moe_intermediate_size": 768,
      "norm_topk_prob": False,
    },
    "all",
    experts=True,
  ),
  "olmoe": Family(
    {"qk_norm": "width"}, {"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False}, experts=True
  ),
  "mixtral": Family(
    {"layout": "mixtral"},
    _MISTRAL | {"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
    "all",
    experts=True,
    fixed=_NO_BIAS | {"norm_topk_prob": True},
  ),
  "gpt_oss": Family(
    {"layout": "gpt_oss", "attention_sinks": True},
    {
      "head_dim": 64,
      "num_key_value_heads": 8,
      "sliding_window": 128,
      "rope_theta": 150000.0,
      "rope_parameters": _GPT_OSS_ROPE,
      "attention_bias": True,
      "num_local_experts": 128,
      "num_experts_per_tok": 4,
      "swiglu_alpha": 1.702,
      "swiglu_limit": 7.0,
    },
    "pattern",
    experts=True,
    biases=("router", *EXPERTS),
    fixed={"sliding_window_pattern": 2, "norm_topk_prob": True},
  ),
}
FAMILIES |= {
  "gemma4_text": Family(
    {"norm_placement": "both", "qk_norm": "head", "value_norm": True, "block_scale": True, "query_scale": 1.0}
    | {"layout": "gemma4"},
    {
      "head_dim": 256,
      "num_key_value_heads": 4,
      "global_head_dim": 512,
      "hidden_activation": "gelu_pytorch_tanh",
      "sliding_window": 512,
      "final_logit_softcapping": None,
      "moe_intermediate_size": None,
      "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
      },
      "vocab_size_per_layer_input": 262144,
      "hidden_size_per_layer_input": 256,
      "num_kv_shared_layers": 0,
      "tie_word_embeddings": True,
    },
    "pattern",
    nested_rope=True,
    partial_rope=True,
    fixed={"sliding_window_pattern": 6},
  ),
  "qwen3_5_text": Family(_QWEN35_OPTIONS, _QWEN35, partial_rope=True, linear=True),
  "qwen3_5_moe_text": Family(
    _QWEN35_OPTIONS | {"layout": "qwen3_5_moe", "experts_beside": "gated"},
    _QWEN35
    | {
      "num_key_value_heads": 2,
      "linear_num_value_heads": 32,
      "num_experts": 256,
      "num_experts_per_tok": 8,
      "moe_intermediate_size": 512,
      "shared_expert_intermediate_size": 512,
    },
    partial_rope=True,
    experts=True,
    linear=True,
    fixed={"norm_topk_prob": True},
  ),
}
# Keys that any family may have. All others above are read in the families that name them, and PyTorch transformers ignores
# them elsewhere: `position_embedding_type` in Llama, say, or `use_sliding_window` in Mistral.
_COMMON = {
  "attention_bias", "head_dim", "layer_types", "num_experts", "num_experts_per_tok", "num_key_value_heads",
  "num_local_experts", "original_max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_theta",
  "sliding_window", "tie_word_embeddings",
}  # fmt: skip
OPTIONAL = frozenset().union(*({*family.defaults, *family.fixed} for family in FAMILIES.values())) - _COMMON
# Models of several senses, and the `model_type` of their language model where their config.json does not state it.
WRAPPED = {
  "gemma3": "gemma3_text",
  "gemma4": "gemma4_text",
  "mistral3": "mistral",
  "qwen3_5": "qwen3_5_text",
  "qwen3_5_moe": "qwen3_5_moe_text",
}
# Of language models within them, published config.json files leave out what PyTorch transformers fills in.
_SIZES = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
  "max_position_embeddings",
)  # fmt: skip
SIZES = {
  name: {key: size for key, size in zip(_SIZES, sizes, strict=True) if size is not None}
  for name, sizes in {
    "gemma3_text": (262208, 2304, 9216, 26, 8, 1e-6, 131072),
    "gemma4_text": (262144, 2304, 9216, 30, 8, 1e-6, 131072),
    "mistral": (32000, 4096, 14336, 32, 32, 1e-6, 131072),
    "ministral3": (131072, 4096, 14336, 34, 32, 1e-5, 262144),
    "qwen3_5_text": (248320, 4096, 12288, 32, 16, 1e-6, 32768),
    "qwen3_5_moe_text": (248320, 2048, None, 40, 16, 1e-6, 32768),
  }.items()
}
# Architectures that people try, and the part that this decoder does not compute.
REFUSED = {
  "qwen3_next": "its delta nets hold their projections in another order (Qwen3.5 is supported)",
  **dict.fromkeys(("gemma4_unified", "gemma4_unified_text"), "its senses share one decoder ('gemma4' is supported)"),
  "gemma3n_text": "its residual stream has several copies (AltUp)",
  "phi4_multimodal": "it holds vision and speech towers",
  "deepseek_v3": "its attention compresses keys and values (multi-head latent attention)",
}
