"""Reads Hugging Face's `config.json` as a `ModelConfig`."""

from collections.abc import Mapping
import math
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.models.config import ROPE_KINDS
from qempo_jax.models.config import DeltaNet
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling
from qempo_jax.models.hugging_face_families import FAMILIES
from qempo_jax.models.hugging_face_families import GRANITE
from qempo_jax.models.hugging_face_families import OPTIONAL
from qempo_jax.models.hugging_face_families import REFUSED
from qempo_jax.models.hugging_face_families import SIZES
from qempo_jax.models.hugging_face_families import WRAPPED
from qempo_jax.models.hugging_face_families import Family

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Larger sizes are mistakes, and are refused before memory is allocated.
_LARGEST, _DEEPEST = 2**28, 2000
# Unsupported options that change a decoder's computation.
_EMPTY = ("quantization_config", "use_bidirectional_attention", "clip_qkv")


def language_model(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config.json of a language model, also of one within a model of several senses."""
  check_type(config)
  architecture, inner = config.get("model_type"), config.get("text_config")
  if architecture not in WRAPPED or not isinstance(inner, Mapping):
    return dict(config)
  check_type(inner)
  outer = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
  own = inner.get("model_type", WRAPPED[architecture])
  return {"model_type": own, **SIZES.get(own, {}), **inner, **outer}


def check_type(config: Mapping[str, Any]) -> None:
  """Raises InputError if `model_type` is anything but a text, or absent."""
  if not isinstance(config.get("model_type"), str | None):
    raise InputError(f"config.json says model_type={config['model_type']!r}; it must be a text")


def from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
  """Reads a Hugging Face `config.json`, as written by transformers 4 or 5.

  Args:
    config: the parsed file.

  Returns:
    The decoder's config.

  Raises:
    InputError: the architecture, or one of its options, is not supported.
  """
  config = language_model(config)
  architecture = config.get("model_type")
  if architecture in REFUSED:
    raise InputError(f"model_type={architecture!r} is not supported: {REFUSED[architecture]}")
  if architecture in WRAPPED:
    raise InputError(f"config.json of {architecture!r} has no text_config, which describes its language model")
  if architecture not in FAMILIES:
    known = ", ".join(repr(name) for name in FAMILIES)
    raise InputError(f"model_type={architecture!r} is not supported; this decoder reads {known} checkpoints")
  family = FAMILIES[architecture]
  read = {key: value for key, value in config.items() if key not in OPTIONAL or key in family.defaults}
  values = {**family.defaults, **read, **family.fixed}
  for key in (
    *_EMPTY,
    *family.unread,
    *(() if family.experts or values.get("enable_moe_block") else ("num_experts", "num_local_experts")),
  ):
    vision = key == "use_bidirectional_attention" and values.get(key) == "vision"  # of no effect on text
    if values.get(key) and not vision and not _is_mxfp4(values, key, family):
      if key == "quantization_config":
        kind = values[key].get("quant_method") if isinstance(values[key], Mapping) else values[key]
        raise InputError(f"quantization_config={kind!r} is not supported; give the model's unquantised weights")
      raise InputError(f"{key}={values[key]!r} is not supported for {architecture!r}; this decoder needs it empty")
  try:
    return ModelConfig(**_fields(values, family))
  except KeyError as error:
    raise InputError(f"config.json has no {error.args[0]!r}; is this a {architecture!r} checkpoint?") from error
  except InputError:
    raise  # It has its own message.
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    raise InputError(f"config.json holds a value of the wrong kind ({error}); is it complete?") from error


def _fields(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
  """Every field of `ModelConfig` but the settings of a run."""
  width, num_heads = _size(values, "hidden_size"), _size(values, "num_attention_heads")
  gemma, granite = "query_pre_attn_scalar" in values, "attention_multiplier" in values
  hybrid = "shared_intermediate_size" in family.defaults
  kinds = values.get("layers_block_type") or values.get("layer_types") or ()
  computed = {"full_attention", "attention" if hybrid else "linear_attention" if family.linear else "sliding_attention"}
  if unknown := set(kinds) - computed:
    raise InputError(f"layer_types names {sorted(unknown)}, which this decoder does not compute")
  rope_layers = _rope_layers(values)
  fields = dict(
    vocab_size=_size(values, "vocab_size"),
    hidden_size=width,
    intermediate_size=_size(values, _width_key(values, hybrid)),
    num_layers=_size(values, "num_hidden_layers"),
    num_heads=num_heads,
    num_kv_heads=num_heads if values.get("num_key_value_heads") is None else _size(values, "num_key_value_heads"),
    head_dim=width // num_heads if values.get("head_dim") is None else _size(values, "head_dim"),
    norm_epsilon=_positive(values, "rms_norm_eps"),
    tie_embeddings=_flag(values, "tie_word_embeddings"),
    windows=_windows(values, family, rope_layers),
    rope_layers=() if all(rope_layers) else rope_layers,
    biases=_biases(values) + family.biases,
    activation=_activation(values),
    attention_softcap=_first({"attn_logit_softcapping": values.get("attn_logit_softcapping")}),
    logit_softcap=_first({"final_logit_softcapping": values.get("final_logit_softcapping")}),
  )
  if gemma:
    fields |= {"query_scale": _positive(values, "query_pre_attn_scalar") ** -0.5, "embedding_scale": width**0.5}
  if granite:
    attention, embedding, residual, logits = (_positive(values, key) for key in GRANITE)
    fields |= {"query_scale": attention, "embedding_scale": embedding}
    fields |= {"residual_scale": residual, "logit_divisor": logits}
  if family.linear:
    fields |= _delta_nets(values)
  if "global_head_dim" in family.defaults:
    fields |= _gemma4(values, fields)
  if family.experts:
    fields |= _experts(values)
  return fields | _rope(values, family, fields["head_dim"]) | dict(family.options)


def _width_key(values, hybrid: bool) -> str:
  if "shared_expert_intermediate_size" in values:
    return "shared_expert_intermediate_size"
  return "shared_intermediate_size" if hybrid else "intermediate_size"


def _delta_nets(values) -> dict[str, Any]:
  """Fields of a model whose other blocks are gated delta nets."""
  count, every = values["num_hidden_layers"], values["full_attention_interval"]
  kinds = values.get("layer_types") or [
    "full_attention" if (index + 1) % every == 0 else "linear_attention" for index in range(count)
  ]
  keys = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
  sizes = DeltaNet(*(_size(values, f"linear_{key}") for key in keys))
  return {"delta_net": sizes, "delta_blocks": tuple(kind == "linear_attention" for kind in kinds)}


def _gemma4(values, fields) -> dict[str, Any]:
  """Gemma 4's fields: heads of blocks without a window, shared keys and values, further inputs, and experts."""
  windows = fields["windows"] or (None,) * fields["num_layers"]
  full = [index for index, window in enumerate(windows) if window is None]
  heads, key_heads = values["global_head_dim"], values.get("num_global_key_value_heads")
  if "per_layer_config" in values:  # as transformers writes it; the published files have the two keys above
    own = values["per_layer_config"] or {}
    sizes = [own.get(str(index), own.get(index)) or {} for index in range(fields["num_layers"])]
    apart = [i for i, size in enumerate(sizes) if size != (sizes[full[0]] if full and i in full else {})]
    if apart:
      raise InputError(f"per_layer_config gives block {apart[0]} sizes that other blocks of its kind do not have")
    found = sizes[full[0]] if full else {}
    heads, key_heads = found.get("head_dim", fields["head_dim"]), found.get("num_key_value_heads")
  alike = _flag(values, "attention_k_eq_v")
  found = {
    "embedding_scale": fields["hidden_size"] ** 0.5,
    "global_head_dim": heads,
    "global_kv_heads": key_heads if alike and key_heads else fields["num_kv_heads"],
    "keys_as_values": alike,
  }
  if shared := values.get("num_kv_shared_layers") or 0:
    found["shared_blocks"] = _size(values, "num_kv_shared_layers")
    if not set(windows) <= set(windows[: fields["num_layers"] - shared]):
      raise InputError(
        f"num_kv_shared_layers={shared} leaves no block of its kind whose keys and values they could use"
      )
    if _flag(values, "use_double_wide_mlp"):
      found["shared_width"] = 2 * fields["intermediate_size"]
  if values.get("hidden_size_per_layer_input"):
    found["block_embedding"] = tuple(
      _size(values, key) for key in ("vocab_size_per_layer_input", "hidden_size_per_layer_input")
    )
  if _flag(values, "enable_moe_block"):
    found |= {"num_experts": _size(values, "num_experts"), "experts_per_token": _size(values, "top_k_experts")}
    found |= {"expert_width": _size(values, "moe_intermediate_size"), "normalise_experts": True}
    found["experts_beside"] = "normed"
  return found


def _is_mxfp4(values, key: str, family: Family) -> bool:
  """True if a key describes the only quantisation that is read."""
  if key != "quantization_config" or family.options.get("layout") != "gpt_oss":
    return False
  return isinstance(values[key], Mapping) and values[key].get("quant_method") == "mxfp4"


def _experts(values) -> dict[str, Any]:
  """Fields of a mixture; `num_local_experts` is another name of `num_experts`, which transformers 5 writes."""
  if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
    raise InputError("mlp_only_layers and decoder_sparse_step are not supported: every block needs its experts")
  key = "num_local_experts" if values.get("num_local_experts") else "num_experts"
  fields = {
    "num_experts": _size(values, key),
    "experts_per_token": _size(values, "num_experts_per_tok"),
    "normalise_experts": _flag(values, "norm_topk_prob"),
  }
  if "moe_intermediate_size" in values:
    beside = "shared_expert_intermediate_size" in values
    fields["expert_width" if beside else "intermediate_size"] = _size(values, "moe_intermediate_size")
  if "swiglu_limit" in values:
    fields["clamped_gate"] = float(values["swiglu_alpha"]), float(values["swiglu_limit"])
  return fields


def _rope_layers(values) -> tuple[bool, ...]:
  """[blocks] True for blocks that rotate queries and keys."""
  count = _size(values, "num_hidden_layers")
  if "position_embedding_type" in values:
    return (values["position_embedding_type"] == "rope",) * count
  if values.get("no_rope_layers"):
    return tuple(map(bool, values["no_rope_layers"]))[:count]
  every = values.get("no_rope_layer_interval")
  return tuple(not every or (index + 1) % every != 0 for index in range(count))


def _size(values, key: str) -> int:
  size = values[key]
  if not isinstance(size, int) or isinstance(size, bool) or size < 1:
    raise InputError(f"config.json says {key}={size!r}; it must be a positive whole number")
  if size > _LARGEST or (key == "num_hidden_layers" and size > _DEEPEST):
    raise InputError(f"config.json says {key}={size}, more than any decoder has; is it damaged?")
  return size


def _positive(values, key: str) -> float:
  value = values[key]
  if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
    raise InputError(f"config.json says {key}={value!r}; it must be a positive number")
  return float(value)


def _flag(values, key: str) -> bool:
  value = values.get(key)
  if value not in (None, True, False):
    raise InputError(f"config.json says {key}={value!r}; it must be true or false")
  return bool(value)


def _biases(values) -> tuple[str, ...]:
  attention = ("query", "key", "value", "output") if _flag(values, "attention_bias") else ()
  return attention + (("gate", "up", "down") if _flag(values, "mlp_bias") else ())


def _activation(values) -> str:
  key = "hidden_activation" if "hidden_activation" in values else "hidden_act"
  name = values.get(key, "silu")
  if name not in _ACTIVATIONS:
    raise InputError(f"{key}={name!r} is not supported; this decoder computes {', '.join(_ACTIVATIONS)}")
  return _ACTIVATIONS[name]


def _windows(values, family: Family, rope_layers) -> tuple[int | None, ...]:
  """Each block's window; empty if none has one."""
  count, window = values["num_hidden_layers"], values.get("sliding_window")
  if (
    family.windows == "none"
    or window is None
    or not _flag({"use_sliding_window": True, **values}, "use_sliding_window")
  ):
    return ()
  window = _size(values, "sliding_window")
  if family.windows == "all":
    slides = [True] * count
  elif types := values.get("layer_types"):
    slides = [kind == "sliding_attention" for kind in types]
  elif family.windows == "typed":
    slides = [True] * count
  elif family.windows == "late":
    slides = [index >= values["max_window_layers"] for index in range(count)]
  elif family.windows == "unrotated":
    slides = [not rotates for rotates in rope_layers]
  else:
    slides = [(index + 1) % values["sliding_window_pattern"] > 0 for index in range(count)]
  if "global_head_dim" in family.defaults:
    slides[-1] = False  # as PyTorch transformers has it
  return tuple(window if slide else None for slide in slides) if any(slides) else ()


def _rope(values, family: Family, head_dim: int) -> dict[str, Any]:
  """Rotary fields, from a flat description or from one per kind of block; transformers prefers `rope_scaling`."""
  rope, old = (values.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
  for key, found in (("rope_parameters", rope), ("rope_scaling", old)):
    if not isinstance(found, Mapping):
      raise InputError(f"config.json says {key}={found!r}; it must be an object")
  local = {}
  if family.nested_rope:
    local, full = rope.get("sliding_attention") or {}, (rope.get("full_attention") or {}) | old
    if _rope_type(local) != "default":
      raise InputError(f"rope_type={_rope_type(local)!r} is not supported for sliding_attention, only 'default'")
  else:
    full = old or rope
  theta = _first(*({"rope_theta": found} for found in (full.get("rope_theta"), values.get("rope_theta"), 10000.0)))
  near = {"rope_theta": local.get("rope_theta")}, {"rope_local_base_freq": values.get("rope_local_base_freq")}
  local_theta = _first(*near) if family.nested_rope else None
  part = full.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
  if part != 1.0 and not family.partial_rope:
    raise InputError(f"partial_rotary_factor={part!r} is not supported for this model_type, which rotates whole heads")
  fields = {
    "rope_theta": theta,
    "local_rope_theta": local_theta,
    # By kinds of blocks, only the proportional kind has a part.
    "rotary_dim": None if part == 1.0 or family.nested_rope else int(head_dim * part),
    "rope_scaling": _scaling(full, values, family),
  }
  growth = full.get("llama_4_scaling_beta")
  if growth and "rope_parameters" in family.defaults:  # PyTorch transformers ignores it elsewhere
    fields["query_growth"] = (float(growth), _original_length(full, values, family))
  return fields


def _original_length(rope, values, family: Family) -> int:
  """Tokens that frequencies were trained for; outside of descriptions by kinds of blocks, the top level goes first."""
  key = "original_max_position_embeddings"
  places = (rope,) if family.nested_rope else (values, rope)
  place = next((place for place in places if place.get(key)), None)
  return _size(values, "max_position_embeddings") if place is None else _size(place, key)


def _first(*places: Mapping[str, Any]) -> float | None:
  """The first number that is given, each under its own key."""
  return next((_positive(place, key) for place in places for key, value in place.items() if value is not None), None)


def _rope_type(rope) -> str:
  return rope.get("rope_type") or rope.get("type") or "default"


def _scaling(rope, values, family: Family) -> RopeScaling | None:
  kind = _rope_type(rope)
  # Old Phi 3 checkpoints have other names for it.
  kind = "longrope" if family.options.get("layout") == "phi3" and kind in ("su", "yarn") else kind
  if kind == "default":
    return None
  if kind not in ROPE_KINDS or kind == "proportional" and "global_head_dim" not in family.defaults:
    known = ", ".join(repr(name) for name in ROPE_KINDS if name != "proportional")
    raise InputError(f"rope_type={kind!r} is not supported; this decoder computes 'default', {known}")
  if kind == "linear":
    return RopeScaling(kind, _positive(rope, "factor"))
  if kind == "proportional":
    return RopeScaling(kind, float(rope.get("factor") or 1.0), part=float(rope.get("partial_rotary_factor") or 1.0))
  if kind == "dynamic":
    return RopeScaling(kind, _positive(rope, "factor"), original_length=_size(values, "max_position_embeddings"))
  length = _original_length(rope, values, family)
  if kind == "llama3":
    ends = (_positive(rope, "low_freq_factor"), _positive(rope, "high_freq_factor"))
    return RopeScaling(kind, _positive(rope, "factor"), *ends, original_length=length)
  attention = rope.get("attention_factor")
  if kind == "longrope":
    if attention is None:
      factor = rope.get("factor") or values["max_position_embeddings"] / length
      attention = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    numbers = lambda key: tuple(_positive({key: number}, key) for number in rope[key])
    lists = {f"{name}_factors": numbers(f"{name}_factor") for name in ("short", "long")}
    return RopeScaling(kind, original_length=length, attention_factor=float(attention), **lists)
  factor = _positive({"factor": rope.get("factor") or values["max_position_embeddings"] / length}, "factor")
  if attention is None:
    growth = lambda scale: 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    attention = growth(above) / growth(below) if above and below else growth(1.0)
  ends = (float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32))
  return RopeScaling(kind, factor, *ends, length, float(attention), rope.get("truncate", True))
