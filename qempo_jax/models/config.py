"""The shape of a Llama-architecture decoder, read from a checkpoint's own description."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from qempo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and constants of a decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU).

  Attributes:
    vocab_size: rows of the embedding, V.
    hidden_size: width of the residual stream, D.
    intermediate_size: width of the gated feed-forward layer, F.
    num_layers: decoder blocks, N.
    num_heads: query heads, H.
    num_kv_heads: key and value heads, each shared by H / num_kv_heads query heads.
    head_dim: width of a head, K.
    rope_theta: base of the rotary position embedding.
    norm_epsilon: added to the mean square in RMSNorm.
    tie_embeddings: whether the embedding is also the output projection.
    compute_dtype: what the operands of matrix products with weights are rounded to; sums, norms, attention,
      the residual stream and logits stay in float32.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float
  norm_epsilon: float
  tie_embeddings: bool
  compute_dtype: str = "float32"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise InputError(
          f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
          "check the checkpoint's config.json"
      )


def from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
  """Reads a Hugging Face `config.json`.

  Args:
    config: the parsed file.

  Returns:
    The decoder's shape.

  Raises:
    InputError: the architecture, or one of its options, is not one that this decoder computes.
  """
  architecture = config.get("model_type")
  if architecture != "llama":
    raise InputError(f"model_type={architecture!r} is not supported; this decoder reads 'llama' checkpoints")
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  unsupported = {
      "rope_type": (rope_type, "default"),
      "hidden_act": (config.get("hidden_act", "silu"), "silu"),
      "attention_bias": (config.get("attention_bias", False), False),
      "mlp_bias": (config.get("mlp_bias", False), False),
  }
  for key, (value, supported) in unsupported.items():
    if value != supported:
      raise InputError(f"{key}={value!r} is not supported; this decoder computes {key}={supported!r}")
  try:
    num_heads = config["num_attention_heads"]
    return ModelConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        norm_epsilon=float(config["rms_norm_eps"]),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
  except KeyError as error:
    raise InputError(f"config.json has no {error.args[0]!r}; is this a Llama checkpoint?") from error
