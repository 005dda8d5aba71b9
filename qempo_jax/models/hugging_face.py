"""Reads Hugging Face's `config.json` as a `ModelConfig`."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling


@dataclasses.dataclass(frozen=True)
class _Family:
  """Properties of a `model_type` that its config.json does not state.

  Attributes:
    options: fields of `ModelConfig` that belong to the architecture.
    defaults: values that PyTorch transformers fills in for missing keys of config.json.
    windows: blocks with the sliding window: "none", "all", "late" (from max_window_layers on) or "pattern" (all but
      every sliding_window_pattern-th).
    unread: keys that must be empty, since PyTorch transformers ignores them.
  """

  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  windows: str = "none"
  unread: tuple[str, ...] = ()


_QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_OPTIONS = {"norm_placement": "both", "norm_offset": 1.0, "scale_embedding": True}
_GEMMA = {
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "tie_word_embeddings": True,
}
_FAMILIES = {
  "llama": _Family(),
  "mistral": _Family(defaults={"sliding_window": 4096}, windows="all"),
  "qwen2": _Family({"biases": ("query", "key", "value")}, _QWEN, "late"),
  "qwen3": _Family({"qk_norm": "head"}, _QWEN | {"head_dim": 128}, "late"),
  "olmo2": _Family({"norm_placement": "post", "qk_norm": "width"}),
  "gemma2": _Family(
    _GEMMA_OPTIONS,
    _GEMMA | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "pattern",
  ),
  "gemma3_text": _Family(
    _GEMMA_OPTIONS | {"qk_norm": "head"},
    _GEMMA | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "pattern",
    unread=("attn_logit_softcapping",),
  ),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Larger sizes are mistakes, and are refused before memory is allocated.
_LARGEST, _DEEPEST = 2**28, 2000
# Unsupported options that change a decoder's computation.
_EMPTY = ("num_experts", "num_local_experts", "quantization_config", "use_bidirectional_attention", "clip_qkv")


def from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
  """Reads a Hugging Face `config.json`, as written by transformers 4 or 5.

  Args:
    config: the parsed file.

  Returns:
    The decoder's config.

  Raises:
    InputError: the architecture, or one of its options, is not supported.
  """
  architecture = config.get("model_type")
  if architecture not in _FAMILIES:
    known = ", ".join(repr(name) for name in _FAMILIES)
    raise InputError(f"model_type={architecture!r} is not supported; this decoder reads {known} checkpoints")
  family = _FAMILIES[architecture]
  values = {**family.defaults, **config}
  for key in (*_EMPTY, *family.unread):
    if values.get(key):
      raise InputError(f"{key}={values[key]!r} is not supported for {architecture!r}; this decoder needs it empty")
  try:
    return ModelConfig(**_fields(values, family))
  except KeyError as error:
    raise InputError(f"config.json has no {error.args[0]!r}; is this a {architecture!r} checkpoint?") from error
  except InputError:
    raise  # It has its own message.
  except (TypeError, ValueError, AttributeError) as error:
    raise InputError(f"config.json holds a value of the wrong kind ({error}); is it complete?") from error


def _fields(values: Mapping[str, Any], family: _Family) -> dict[str, Any]:
  """Every field of `ModelConfig` but the compute dtype."""
  width, num_heads = _size(values, "hidden_size"), _size(values, "num_attention_heads")
  fields = dict(
    vocab_size=_size(values, "vocab_size"),
    hidden_size=width,
    intermediate_size=_size(values, "intermediate_size"),
    num_layers=_size(values, "num_hidden_layers"),
    num_heads=num_heads,
    num_kv_heads=values.get("num_key_value_heads") or num_heads,
    head_dim=values.get("head_dim") or width // num_heads,
    norm_epsilon=float(values["rms_norm_eps"]),
    tie_embeddings=bool(values.get("tie_word_embeddings", False)),
    windows=_windows(values, family),
    biases=_biases(values),
    activation=_activation(values),
    attention_softcap=values.get("attn_logit_softcapping"),
    logit_softcap=values.get("final_logit_softcapping"),
  )
  if scalar := values.get("query_pre_attn_scalar"):
    fields["query_scale"] = scalar**-0.5
  return fields | _rope(values) | dict(family.options)


def _size(values, key: str) -> int:
  size = values[key]
  if not isinstance(size, int) or isinstance(size, bool) or size < 1:
    raise InputError(f"config.json says {key}={size!r}; it must be a positive whole number")
  if size > _LARGEST or (key == "num_hidden_layers" and size > _DEEPEST):
    raise InputError(f"config.json says {key}={size}, more than any decoder has; is it damaged?")
  return size


def _biases(values) -> tuple[str, ...]:
  attention = ("query", "key", "value", "output") if values.get("attention_bias") else ()
  return attention + (("gate", "up", "down") if values.get("mlp_bias") else ())


def _activation(values) -> str:
  key = "hidden_activation" if "hidden_activation" in values else "hidden_act"
  name = values.get(key, "silu")
  if name not in _ACTIVATIONS:
    raise InputError(f"{key}={name!r} is not supported; this decoder computes {', '.join(_ACTIVATIONS)}")
  return _ACTIVATIONS[name]


def _windows(values, family: _Family) -> tuple[int | None, ...]:
  """Each block's window; empty if none has one."""
  count, window = values["num_hidden_layers"], values.get("sliding_window")
  if family.windows == "none" or window is None or not values.get("use_sliding_window", True):
    return ()
  if family.windows == "all":
    slides = [True] * count
  elif types := values.get("layer_types"):
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
      raise InputError(f"layer_types names {sorted(unknown)}, which this decoder does not compute")
    slides = [kind == "sliding_attention" for kind in types]
  elif family.windows == "late":
    slides = [index >= values["max_window_layers"] for index in range(count)]
  else:
    slides = [(index + 1) % values["sliding_window_pattern"] > 0 for index in range(count)]
  return tuple(window if slide else None for slide in slides) if any(slides) else ()


def _rope(values) -> dict[str, Any]:
  """Rotary fields, from a flat description or from one per kind of block."""
  rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
  nested = "full_attention" in rope or "sliding_attention" in rope
  full, local = (rope.get("full_attention") or {}, rope.get("sliding_attention") or {}) if nested else (rope, {})
  if _rope_type(local) != "default":
    raise InputError(f"rope_type={_rope_type(local)!r} is not supported for sliding_attention, only 'default'")
  theta = float(full.get("rope_theta") or values.get("rope_theta") or 10000.0)
  local_theta = local.get("rope_theta") or values.get("rope_local_base_freq")
  return {
    "rope_theta": theta,
    "local_rope_theta": None if local_theta is None else float(local_theta),
    "rope_scaling": _scaling(full, values),
  }


def _rope_type(rope) -> str:
  return rope.get("rope_type") or rope.get("type") or "default"


def _scaling(rope, values) -> RopeScaling | None:
  kind = _rope_type(rope)
  partial = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
  if partial != 1.0:
    raise InputError(f"partial_rotary_factor={partial!r} is not supported; this decoder rotates whole heads")
  if kind == "default":
    return None
  if kind == "linear":
    return RopeScaling("linear", float(rope["factor"]))
  if kind == "llama3":
    length = rope.get("original_max_position_embeddings") or values["max_position_embeddings"]
    ends = (float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))
    return RopeScaling("llama3", float(rope["factor"]), *ends, original_length=length)
  raise InputError(f"rope_type={kind!r} is not supported; this decoder computes 'default', 'linear' and 'llama3'")
