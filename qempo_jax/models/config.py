"""The config of a decoder: one description for every supported family of checkpoints."""

import dataclasses
from typing import NamedTuple

from qempo_jax.errors import InputError
from qempo_jax.kernels.choice import TOKEN_STATS

PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
DELTA = ("delta_query", "delta_key", "delta_value", "delta_gate", "delta_output")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
KV_CACHES = ("auto", "float32", "bfloat16", "int8")
EXPERTS = ("expert_gate", "expert_up", "expert_down")
LAYOUTS = ("llama", "phi3", "granitemoehybrid", "mixtral", "gpt_oss", "gemma4", "qwen3_5_moe")
ROPE_KINDS = ("linear", "llama3", "yarn", "longrope", "dynamic", "proportional")
REMATS = ("none", "full", "dots", "dots_no_batch")
_CHOICES = {
  "activation": ("silu", "gelu_tanh"),
  "norm_placement": ("pre", "post", "both"),
  "qk_norm": ("none", "head", "width"),
  "attention": ATTENTIONS,
  "kv_cache": KV_CACHES,
  "remat": REMATS,
  "token_stats": TOKEN_STATS,
  "experts_beside": ("none", "gated", "normed"),
  "layout": LAYOUTS,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Scaling of rotary frequencies for sequences longer than in the first training.

  Attributes:
    kind: "linear" divides every frequency by the factor.
      "llama3" divides those with fewer than `low_frequency_factor` periods in `original_length` tokens, keeps those
      with more than `high_frequency_factor`, and interpolates between (Grattafiori et al., arXiv 2407.21783).
      "yarn" does so with an interpolation that is linear in the pair's index (Peng et al., arXiv 2309.00071).
      "longrope" divides each pair's frequency by its own factor, short or long by the length of the run's sequences
      (Ding et al., arXiv 2402.13753).
      "dynamic" grows the base with the length of the run's sequences beyond `original_length`.
      "proportional" gives the first part of a head's pairs the frequencies of a whole head, divided by the factor, and
      leaves the others unrotated.
    factor: divisor of frequencies; not read by "longrope".
    low_frequency_factor: see above, periods.
    high_frequency_factor: see above, periods.
    original_length: longest sequence of the first training, tokens.
    attention_factor: factor of rotated queries and of rotated keys, "yarn" and "longrope".
    truncate: "yarn" rounds the interpolation's ends to whole pairs.
    short_factors: "longrope", divisors of each pair's frequency up to `original_length`.
    long_factors: the same beyond it.
    part: "proportional", rotated part of a head.
  """

  kind: str
  factor: float = 1.0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8192
  attention_factor: float = 1.0
  truncate: bool = True
  short_factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()
  part: float = 1.0


class DeltaNet(NamedTuple):
  """Sizes of gated delta nets, see `delta_net`.

  Attributes:
    key_heads: heads of queries and keys.
    value_heads: heads of values, each key head's one after another.
    key_dim: width of a query or a key.
    value_dim: width of a value.
    kernel: tokens that the convolution reads.
  """

  key_heads: int
  value_heads: int
  key_dim: int
  value_dim: int
  kernel: int


class Kind(NamedTuple):
  """Form of a block: which parameters it has; see `stacks`.

  Attributes:
    mixer: "attention", "global" (attention with heads of their own size, where no window is) or "delta".
    reuses: True if keys and values are those of an earlier block.
    wide: True if the feed-forward layer is `shared_width` wide.
  """

  mixer: str = "attention"
  reuses: bool = False
  wide: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes, constants and options of a decoder (RMSNorm, RoPE, grouped-query attention, gated feed-forward).

  The options are independent; their defaults are Llama's.

  Attributes:
    vocab_size: V, rows of the embedding.
    hidden_size: D, width of the residual stream.
    intermediate_size: F, width of the gated feed-forward layer, or of each expert.
    num_layers: N, decoder blocks.
    num_heads: H, query heads.
    num_kv_heads: key and value heads, each shared by H / num_kv_heads query heads.
    head_dim: K, width of a head; H K need not be D.
    rope_theta: base of the rotary position embedding.
    norm_epsilon: term added to the mean square in RMSNorm.
    tie_embeddings: True if the embedding is also the output projection.
    compute_dtype: dtype of the operands of matrix products with weights; sums, norms, attention, the residual stream
      and logits stay in float32.
    rope_scaling: scaling of rotary frequencies, or None.
    rotary_dim: rotated numbers of a head, the first ones; None: all.
    rope_layers: for each block whether queries and keys are rotated; empty if all are.
    query_growth: (b, n) multiplies rotated queries at position p by 1 + b log(1 + floor(p / n)); None: no such factor.
    max_length: longest sequence of a run, prompt and response, tokens: selects the frequencies of "longrope" and
      "dynamic" scaling, the same ones for all sequences; None: at most the original length.
    local_rope_theta: base of blocks with a window, unscaled; None: that of all blocks.
    windows: for each block the tokens that a query attends to, itself included, or None for all earlier ones; empty if
      no block has a window.
    biases: matrices with a bias, of `PROJECTIONS`, `EXPERTS` and "router".
    activation: activation of the gate, "silu" or "gelu_tanh" (the tanh approximation of GELU, arXiv 1606.08415).
    clamped_gate: (a, c) replaces act(gate) up by g sigmoid(a g) (1 + u), with g = min(gate, c) and u = up limited to
      [-c, c] (Agarwal et al., arXiv 2508.10925); None: no such gate.
    norm_placement: norms "pre" (before attention and feed-forward), "post" (on their outputs, before the residual sum)
      or "both".
    norm_offset: term added to every norm's scale: 1 for checkpoints with scales around 0.
    qk_norm: RMSNorm of queries and keys before rotation, "none", a "head" at a time, or over the whole "width".
    embedding_scale: factor of embeddings.
    residual_scale: factor of the outputs of attention and feed-forward, before the residual sum.
    logit_divisor: divisor of the final hidden state, and so of the logits.
    query_scale: factor of scores; None: 1 / sqrt(K).
    attention_softcap: c of scores <- c tanh(scores / c) (arXiv 2408.00118), or None.
    logit_softcap: the same for the final logits, before any temperature.
    attention_sinks: True adds e^s to the sum that each head's softmax divides by, s a learned number of the head (Xiao et
      al., arXiv 2309.17453).
    num_tokens: tokens of the tokenizer; later rows of the embedding are padding and get no probability. None: V.
    forbidden: ids of tokens without probability, ascending: special tokens that rewards do not see.
    attention: implementation of attention over whole rows, see `attention`.
    kv_cache: dtype of keys and values while sampling, see `kv_cache`. "auto" is float32, that of the products' sums, in
      which sampler and scorer agree; "int8" has a scale for each token and head.
    remat: rematerialisation of a block in the backward pass, see `transformer.rematerialised`: "full" recomputes all,
      "dots" all but products, "dots_no_batch" all but products with weights, "none" nothing.
    num_experts: E, experts of every block, which take the place of its feed-forward layer, see `experts`; 0: none.
    experts_per_token: S, experts that a token chooses.
    normalise_experts: True divides the weights of the chosen experts by their sum.
    expert_width: F of an expert, if not `intermediate_size`.
    experts_beside: a feed-forward layer beside the experts, whose outputs are added: "none"; "gated", times the sigmoid of
      a projection (Qwen's shared expert); "normed", with a norm of each output and of each input, the router's too.
    global_head_dim: K of blocks without a window, if theirs are of another size; None: `head_dim`.
    global_kv_heads: their key and value heads; None: `num_kv_heads`.
    keys_as_values: True if their values are the projected keys, before norm and rotation.
    value_norm: RMSNorm of values without a scale, a head at a time.
    shared_blocks: last blocks that have no keys and values of their own, and use those of the last other block with, or
      without, a window.
    shared_width: F of these blocks; None: `intermediate_size`.
    block_scale: True multiplies the stream after each block by the block's factor, which is not trained.
    block_embedding: (V', P): every block has an embedding of its own of P numbers for V' tokens, which a further layer
      gates (Gemma 3n's per-layer embeddings); None: no such.
    gated_attention: True multiplies the output of attention by the sigmoid of a further part of the query's projection.
    delta_net: sizes of gated delta nets in place of attention, or None.
    delta_blocks: for each block whether it has one; empty if none has.
    layout: names and fusion of a checkpoint's tensors, see `tensor_names`; no effect on the computation.
    token_stats: implementation of sums over the vocabulary, see `token_stats.token_stats`.
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
  rotary_dim: int | None = None
  rope_layers: tuple[bool, ...] = ()
  query_growth: tuple[float, int] | None = None
  max_length: int | None = None
  local_rope_theta: float | None = None
  windows: tuple[int | None, ...] = ()
  biases: tuple[str, ...] = ()
  activation: str = "silu"
  clamped_gate: tuple[float, float] | None = None
  norm_placement: str = "pre"
  norm_offset: float = 0.0
  qk_norm: str = "none"
  embedding_scale: float = 1.0
  residual_scale: float = 1.0
  logit_divisor: float = 1.0
  query_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  attention_sinks: bool = False
  num_tokens: int | None = None
  forbidden: tuple[int, ...] = ()
  attention: str = "auto"
  kv_cache: str = "auto"
  remat: str = "full"
  num_experts: int = 0
  experts_per_token: int = 0
  normalise_experts: bool = False
  expert_width: int | None = None
  experts_beside: str = "none"
  global_head_dim: int | None = None
  global_kv_heads: int | None = None
  keys_as_values: bool = False
  value_norm: bool = False
  shared_blocks: int = 0
  shared_width: int | None = None
  block_scale: bool = False
  block_embedding: tuple[int, int] | None = None
  gated_attention: bool = False
  delta_net: DeltaNet | None = None
  delta_blocks: tuple[bool, ...] = ()
  layout: str = "llama"
  token_stats: str = "auto"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
        "check the checkpoint's config.json"
      )
    per_block = (("windows", "layer_types"), ("rope_layers", "no_rope_layers"), ("delta_blocks", "layer_types"))
    for name, key in per_block:
      if (blocks := getattr(self, name)) and len(blocks) != self.num_layers:
        raise InputError(
          f"{name} names {len(blocks)} blocks, but there are num_layers={self.num_layers}; "
          f"check {key} in the checkpoint's config.json"
        )
    if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
      raise InputError(f"experts_per_token={self.experts_per_token} must be 1 to num_experts={self.num_experts}")
    if self.rotated % 2 or not 0 < self.rotated <= self.head_dim:
      raise InputError(f"{self.rotated} rotated numbers do not fit head_dim={self.head_dim}: an even part of it")
    if self.rope_scaling and self.rope_scaling.kind == "longrope":
      for factors in (self.rope_scaling.short_factors, self.rope_scaling.long_factors):
        if len(factors) != self.rotated // 2:
          raise InputError(
            f"longrope has {len(factors)} factors for {self.rotated // 2} rotary pairs; check rope_parameters in the"
            " checkpoint's config.json"
          )
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
    if self.num_tokens is not None and not 0 < self.num_tokens <= self.vocab_size:
      raise InputError(
        f"num_tokens={self.num_tokens} does not fit vocab_size={self.vocab_size}; is this the model's own tokenizer?"
      )
    if outside := [id_ for id_ in self.forbidden if not 0 <= id_ < self.vocab_size]:
      raise InputError(f"forbidden names token {outside[0]}, which is outside vocab_size={self.vocab_size}")
    matrices = (*PROJECTIONS, "router", *EXPERTS)
    if unknown := set(self.biases) - set(matrices):
      raise InputError(f"biases names {sorted(unknown)}; matrices are {', '.join(matrices)}")

  @property
  def kinds(self) -> tuple[Kind, ...]:
    """Every block's form."""
    windows = self.windows or (None,) * self.num_layers
    delta = self.delta_blocks or (False,) * self.num_layers
    apart = self.global_head_dim is not None or self.global_kv_heads is not None or self.keys_as_values
    mixer = lambda i: "delta" if delta[i] else "global" if apart and windows[i] is None else "attention"
    reuses = lambda i: i >= self.num_layers - self.shared_blocks
    wide = lambda i: reuses(i) and self.shared_width is not None
    return tuple(Kind(mixer(i), reuses(i), wide(i)) for i in range(self.num_layers))

  @property
  def rotated(self) -> int:
    """Rotated numbers of a head."""
    return self.head_dim if self.rotary_dim is None else self.rotary_dim

  @property
  def attention_scale(self) -> float:
    """Factor of scores q k'."""
    return self.head_dim**-0.5 if self.query_scale is None else self.query_scale
