"""FLOP, bytes and memory of training and sampling on paper, from a decoder's shape alone.

FLOP are those of matrix products, two a multiplication: products with weights, attention's scores and sums, the head.
Bytes are the least that unfused products move: each product's operands and result once, in the dtypes of
`ModelConfig`, elementwise work fused into them, and no [tokens, vocabulary] array. Scores of attention stay on the chip.
`computed` counts the pairs of queries and keys that the XLA path of `models.shared_prompt` computes, and the padding of
packed rows; otherwise only pairs that attend, and no padding.
"""

import math
from typing import NamedTuple

from experiments.compile.chips import Chip
from qempo_jax import packing
from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import presets
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import ModelConfig

_FLOAT = 4  # Bytes of activations, sums and logits.
# Bytes of a number.
WIDTHS = {"float32": 4, "bfloat16": 2, "auto": 4}


class Work(NamedTuple):
  """Work of a part of a program.

  Attributes:
    flops: FLOP of matrix products.
    bytes: read and written in device memory.
  """

  flops: float
  bytes: float

  def __add__(self, other):
    return Work(self.flops + other.flops, self.bytes + other.bytes)

  def times(self, factor: float) -> "Work":
    """The work `factor` times over."""
    return Work(factor * self.flops, factor * self.bytes)

  def seconds(self, chip: Chip, *, compute: float = 1.0, memory: float = 1.0) -> float:
    """Roofline, seconds: the slower of compute and memory at these shares of the chip's peaks."""
    return max(self.flops / (compute * chip.flops), self.bytes / (memory * chip.hbm_bandwidth))


class Batch(NamedTuple):
  """Packed rows, one prompt each, every response of the same length.

  Attributes:
    rows: prompts.
    prompt: tokens of a prompt.
    group: responses a prompt.
    response: tokens of a response; its last is scored, and never an input.
    bucket: multiple to which widths are rounded up, tokens.
  """

  rows: int
  prompt: int
  group: int
  response: int
  bucket: int = 128

  @property
  def layout(self):
    """Layout of a packed row, as the library chooses it."""
    return packing.row_layout(self.prompt, self.response, bucket=self.bucket, prompts=1, responses=self.group)

  def columns(self, computed: bool) -> tuple[int, int]:
    """(columns of a row's prompt, columns of its responses)."""
    columns = max(self.group * (self.response - 1), 1)
    return (self.layout.prompt, packing.round_up(columns, self.bucket)) if computed else (self.prompt, columns)

  def fed(self, computed: bool = False) -> int:
    """Tokens that the blocks process, all rows together."""
    return self.rows * sum(self.columns(computed))

  def scored(self, computed: bool = False) -> int:
    """Tokens whose log-probs are computed, all rows together; packed rows have a column more a response."""
    return self.rows * (self.columns(True)[1] + self.group if computed else self.group * self.response)

  def pairs(self, computed: bool = False) -> int:
    """Pairs of queries and keys, all rows together."""
    prompt, columns = self.columns(computed)
    if not computed:
      past = self.response * (self.response - 1) // 2
      return self.rows * (prompt * (prompt + 1) // 2 + columns * prompt + self.group * past)
    chunk, back = self.layout.chunk, -(-(self.layout.reach - 1) // self.layout.chunk)
    own = (back + 1) * chunk if (back + 1) * chunk < columns else columns
    return self.rows * (prompt * prompt + columns * (prompt + own))


def block_weights(config: ModelConfig, tokens: float = math.inf) -> float:
  """Weights of a block's matrices that so many tokens use, the mean of all blocks.

  Of a mixture's experts, at most those that the tokens choose.
  """
  shapes = parameters.param_shapes(config)["layers"]
  share = min(1.0, config.experts_per_token * tokens / config.num_experts) if config.num_experts else 1.0
  matrices = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 2 and "bias" not in name}
  return sum(size * (share if name in EXPERTS else 1) for name, size in matrices.items()) / config.num_layers


def adapter_weights(config: ModelConfig, rank: int) -> int:
  """Weights of all blocks' adapters; a mixture's experts have none."""
  shapes = parameters.param_shapes(config)["layers"]
  names = [name for name in lora.TARGETS if name in shapes and name not in EXPERTS]
  sizes = (lora.matrix_shape(name, shapes[name]) for name in names)
  return sum(blocks * rank * (inputs + outputs) for blocks, inputs, outputs in sizes)


def mixer_sizes(config: ModelConfig) -> list[tuple[int, int, int]]:
  """Of every block: numbers of a token's queries, of its own keys and values, and of those that are cached."""
  found = []
  for kind in config.kinds:
    if kind.mixer == "delta":
      sizes = config.delta_net
      found.append((sizes.value_heads * sizes.value_dim, 2 * sizes.key_heads * sizes.key_dim, 0))
      continue
    width, heads = config.head_dim, config.num_kv_heads
    if kind.mixer == "global":
      width, heads = config.global_head_dim or width, config.global_kv_heads or heads
    own = 0 if kind.reuses else 2 * heads * width
    found.append((config.num_heads * width, own, own))
  return found


def widths(config: ModelConfig) -> tuple[float, float, float]:
  """Numbers of a token in a block, means of all blocks: (queries, keys and values, the feed-forward layer's)."""
  queries, keys, _ = (sum(sizes) / config.num_layers for sizes in zip(*mixer_sizes(config)))
  chosen = config.experts_per_token * (config.expert_width or config.intermediate_size)
  dense = config.intermediate_size if not config.num_experts or config.experts_beside != "none" else 0
  return queries, keys, chosen + dense


def attended(config: ModelConfig) -> float:
  """Numbers of queries of all blocks that attend to keys; the rest go through a state."""
  return sum(size[0] for size, kind in zip(mixer_sizes(config), config.kinds) if kind.mixer != "delta")


def blocks_forward(config: ModelConfig, tokens: float, pairs: float, *, rank: int = 0, stored: int = _FLOAT) -> Work:
  """All blocks over so many tokens and pairs.

  Args:
    config: the decoder's config.
    tokens: that the blocks process.
    pairs: of queries and keys.
    rank: of adapters; 0: none.
    stored: bytes of a stored weight, read once.
  """
  weights, low = block_weights(config, tokens), adapter_weights(config, rank) / config.num_layers
  active = block_weights(config, 1)
  heads, keys, f = widths(config)
  d, c = config.hidden_size, WIDTHS[config.compute_dtype]
  attention = c * d + 2 * _FLOAT * (heads + keys) + 2 * c * heads + _FLOAT * d
  feed_forward = c * d + 2 * 2 * _FLOAT * f + 2 * c * f + _FLOAT * d
  residual = 2 * 2 * _FLOAT * d
  flops = config.num_layers * 2 * (active + low) * tokens + 4 * attended(config) * pairs
  moved = stored * weights + _FLOAT * low + tokens * (attention + feed_forward + residual)
  return Work(flops, config.num_layers * moved)


def head_forward(config: ModelConfig, tokens: float, *, stored: int = _FLOAT) -> Work:
  """Log-probs and entropies of so many tokens."""
  size, c = config.vocab_size * config.hidden_size, WIDTHS[config.compute_dtype]
  return Work(2 * size * tokens, stored * size + tokens * (c * config.hidden_size + 2 * _FLOAT))


def scorer(config: ModelConfig, batch: Batch, *, computed=False, rank=0, stored=_FLOAT) -> Work:
  """The forward pass of a batch, with log-probs and entropies of its responses."""
  blocks = blocks_forward(config, batch.fed(computed), batch.pairs(computed), rank=rank, stored=stored)
  return blocks + head_forward(config, batch.scored(computed), stored=stored)


def backward(config: ModelConfig, batch: Batch, *, computed=False, rank=0, stored=_FLOAT, recompute=True) -> Work:
  """The gradient after `scorer`: two products for each of the forward pass, and recomputation of blocks and logits.

  Under LoRA the frozen matrices have one product each, and no gradient.

  Args:
    config: the decoder's config.
    batch: the batch.
    computed: count padding and masked pairs.
    rank: of adapters; 0 trains all weights.
    stored: bytes of a stored weight.
    recompute: blocks are computed again, as under remat "full".
  """
  fed, pairs, scored = batch.fed(computed), batch.pairs(computed), batch.scored(computed)
  forward = blocks_forward(config, fed, pairs, rank=rank, stored=stored)
  found = forward.times(2)
  if recompute:
    found += forward
    if config.norm_placement == "pre":  # No gradient reads the block's result, so its last product is left out.
      used = widths(config)[2]
      last = config.num_layers * config.hidden_size * (used + rank)
      found += Work(-2 * fed * last, 0)
  head = head_forward(config, scored, stored=stored)
  found += head.times(3)  # the logits again, and two products
  weights, head_weights = config.num_layers * block_weights(config), config.vocab_size * config.hidden_size
  if rank:
    return Work(found.flops - 2 * config.num_layers * block_weights(config, 1) * fed - head.flops, found.bytes)
  return found + Work(0, _FLOAT * (weights + head_weights))  # the gradients are written


def model_flops(config: ModelConfig, batch: Batch, *, rank: int = 0, reference: bool = False) -> float:
  """FLOP that a training step needs: forward and backward without recomputation, and the reference's forward pass.

  Masked pairs and padding do not count, so that MFU = model FLOP / seconds / peak.
  """
  forward = scorer(config, batch, rank=rank)
  back = backward(config, batch, rank=rank, recompute=False).flops - head_forward(config, batch.scored()).flops
  return forward.flops + back + (scorer(config, batch).flops if reference else 0.0)


def training_step(
  config: ModelConfig, batch: Batch, *, micro_batches=1, reference=False, computed=False, stored=_FLOAT, devices=1
) -> Work:
  """A whole update of all weights on one device: forward, backward, the reference's forward pass, optimizer.

  Rows are split over the devices, and so are parameters and moments, but each device reads all weights for each of its
  microbatches (fully sharded data parallelism).

  Args:
    config: the decoder's config.
    batch: the batch of all devices.
    micro_batches: parts of the batch.
    reference: True if the reference scores the batch in the same step.
    computed: count padding and masked pairs.
    stored: bytes of a weight as it is read.
    devices: number of devices.
  """
  part = batch._replace(rows=batch.rows / micro_batches / devices)
  one = scorer(config, part, computed=computed, stored=stored)
  step = one + backward(config, part, computed=computed, stored=stored) + (one if reference else Work(0, 0))
  params = presets.num_params(config) / devices
  sums = Work(0, 2 * _FLOAT * params if micro_batches > 1 else 0)  # the gradient's sum is read and written
  return (step + sums).times(micro_batches) + optimizer(params)


def optimizer(params: float, *, stored: int = _FLOAT, moments: int = _FLOAT) -> Work:
  """AdamW with a clipped gradient: the norm reads the gradient, the update reads all and writes parameters and moments."""
  return Work(0.0, params * (2 * _FLOAT + 2 * stored + 4 * moments))


def cache_bytes(config: ModelConfig, kind: str) -> int:
  """Bytes of one token's keys and values in all blocks; int8 has a float32 scale for each key and value head."""
  numbers = sum(cached for *_, cached in mixer_sizes(config))
  if kind != "int8":
    return numbers * WIDTHS[kind]
  heads = {"global": config.global_kv_heads or config.num_kv_heads, "attention": config.num_kv_heads, "delta": 0}
  return numbers + 4 * sum(2 * heads[kind.mixer] for kind in config.kinds if not kind.reuses)


def state_bytes(config: ModelConfig) -> int:
  """Bytes of one sequence's states and last inputs of the convolution in all gated delta nets."""
  if not config.delta_net:
    return 0
  j, h, k, v, taps = config.delta_net
  return _FLOAT * sum(config.delta_blocks) * (h * k * v + (taps - 1) * (2 * j * k + h * v))


def decode_step(config: ModelConfig, *, prompts: float, group: int, prompt: int, past: float, kind: str) -> Work:
  """One token of every sample: weights and the prompts' keys and values are read once, each sample's own past too.

  Args:
    config: the decoder's config.
    prompts: prompts side by side.
    group: samples a prompt.
    prompt: tokens of a prompt.
    past: response tokens that a sample attends to, on average.
    kind: dtype of keys and values, "float32", "bfloat16" or "int8".
  """
  samples = prompts * group
  c = WIDTHS[config.compute_dtype]
  weights, active = (config.num_layers * block_weights(config, tokens) for tokens in (samples, 1))
  head = config.vocab_size * config.hidden_size
  flops = 2 * (active + head) * samples + 4 * attended(config) * samples * (prompt + past)
  moved = c * (weights + head) + cache_bytes(config, kind) * (prompts * prompt + samples * past)
  logits = 2 * _FLOAT * samples * config.vocab_size  # written, and read by the draw
  states = 2 * samples * state_bytes(config)  # read and written
  return Work(flops, moved + logits + states)


def sampling(config: ModelConfig, batch: Batch, *, kind: str) -> Work:
  """All samples of a batch: the prefill, then as many steps as a response has tokens."""
  causal = batch.rows * batch.prompt * (batch.prompt + 1) / 2
  prefill = blocks_forward(config, batch.rows * batch.prompt, causal)
  sizes = dict(prompts=batch.rows, group=batch.group, prompt=batch.prompt, kind=kind)
  steps = decode_step(config, past=batch.response / 2, **sizes)
  return prefill + steps.times(batch.response)
