"""The shape of a decoder: one description that covers every family of checkpoints read here."""

import dataclasses

from qempo_jax.errors import InputError
from qempo_jax.kernels.choice import TOKEN_STATS

PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
KV_CACHES = ("auto", "float32", "bfloat16", "int8")
REMATS = ("none", "full", "dots", "dots_no_batch")
_CHOICES = {
  "activation": ("silu", "gelu_tanh"),
  "norm_placement": ("pre", "post", "both"),
  "qk_norm": ("none", "head", "width"),
  "attention": ATTENTIONS,
  "kv_cache": KV_CACHES,
  "remat": REMATS,
  "token_stats": TOKEN_STATS,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are lowered so that a decoder reads further than it was first trained to.

  Attributes:
    kind: "linear" divides every frequency by the factor; "llama3" only those whose wavelength is beyond
      `original_length` / `low_frequency_factor` tokens, with a smooth passage down to
      `original_length` / `high_frequency_factor` (Grattafiori et al., arXiv 2407.21783, and its published code).
    factor: what frequencies are divided by.
    low_frequency_factor: see above; of "llama3" alone, like the next two.
    high_frequency_factor: see above.
    original_length: tokens that the decoder was first trained to read.
  """

  kind: str
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes, constants and options of a decoder (RMSNorm, RoPE, grouped-query attention, gated feed-forward).

  The options' defaults are Llama's. Each is independent of the others.

  Attributes:
    vocab_size: rows of the embedding, V.
    hidden_size: width of the residual stream, D.
    intermediate_size: width of the gated feed-forward layer, F.
    num_layers: decoder blocks, N.
    num_heads: query heads, H.
    num_kv_heads: key and value heads, each shared by H / num_kv_heads query heads.
    head_dim: width of a head, K; H K need not be D.
    rope_theta: base of the rotary position embedding.
    norm_epsilon: added to the mean square in RMSNorm.
    tie_embeddings: whether the embedding is also the output projection.
    compute_dtype: what the operands of matrix products with weights are rounded to; sums, norms, attention,
      the residual stream and logits stay in float32.
    rope_scaling: how rotary frequencies are lowered, or None.
    local_rope_theta: base of the blocks with a window, unscaled, or None for that of all blocks.
    windows: for each block how many tokens a query sees, itself included, or None for all before it; empty
      where no block has a window.
    biases: which projections add a bias, of `PROJECTIONS`.
    activation: of the gate, "silu" or "gelu_tanh" (the tanh approximation of GELU, arXiv 1606.08415).
    norm_placement: norms "pre" (before attention and feed-forward), "post" (on what they add to the
      residual stream) or "both".
    norm_offset: added to every norm's scale: 1 where checkpoints store scales around 0.
    qk_norm: RMSNorm of queries and keys before rotation, "none", a "head" at a time, or over the whole "width".
    scale_embedding: multiply looked-up embeddings by sqrt(D).
    query_scale: what scores are multiplied by, or None for 1 / sqrt(K).
    attention_softcap: c of scores <- c tanh(scores / c) (arXiv 2408.00118), or None.
    logit_softcap: likewise of the final logits, before any temperature.
    num_tokens: tokens of the tokenizer, or None for V; rows of the embedding beyond it only pad the vocabulary,
      and no distribution gives them anything.
    forbidden: ids of tokens that no distribution gives anything, ascending: special tokens that rewards do not see.
    attention: which implementation computes attention over whole rows, see `attention`.
    kv_cache: dtype of keys and values while sampling, see `kv_cache`: "auto" is that of the products' sums, float32,
      in which sampler and scorer agree; "int8" has a scale for each token and head.
    remat: what the backward pass recomputes of each block, see `transformer.rematerialised`: "full" all of it,
      "dots" all but products, "dots_no_batch" all but products with weights, "none" nothing.
    token_stats: what sums over the vocabulary, see `token_stats.token_stats`.
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
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  windows: tuple[int | None, ...] = ()
  biases: tuple[str, ...] = ()
  activation: str = "silu"
  norm_placement: str = "pre"
  norm_offset: float = 0.0
  qk_norm: str = "none"
  scale_embedding: bool = False
  query_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  num_tokens: int | None = None
  forbidden: tuple[int, ...] = ()
  attention: str = "auto"
  kv_cache: str = "auto"
  remat: str = "full"
  token_stats: str = "auto"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
        "check the checkpoint's config.json"
      )
    if self.windows and len(self.windows) != self.num_layers:
      raise InputError(
        f"windows names {len(self.windows)} blocks, but there are num_layers={self.num_layers}; "
        "check layer_types in the checkpoint's config.json"
      )
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
    if self.num_tokens is not None and not 0 < self.num_tokens <= self.vocab_size:
      raise InputError(
        f"num_tokens={self.num_tokens} does not fit vocab_size={self.vocab_size}; is this the model's own tokenizer?"
      )
    if outside := [id_ for id_ in self.forbidden if not 0 <= id_ < self.vocab_size]:
      raise InputError(f"forbidden names token {outside[0]}, which is none of vocab_size={self.vocab_size}")
    if unknown := set(self.biases) - set(PROJECTIONS):
      raise InputError(f"biases names {sorted(unknown)}; projections are {', '.join(PROJECTIONS)}")

  @property
  def attention_scale(self) -> float:
    """What scores q k' are multiplied by."""
    return self.head_dim**-0.5 if self.query_scale is None else self.query_scale
