"""Peak memory of training and sampling on one device, estimated from a decoder's shape: bytes by part.

Activations are what the backward pass keeps under the rematerialisation policy, and the working set of one block. The
compiler may reuse more or need more; `experiments.compile_check` finds the exact figure for TPUs by compiling.
"""

from experiments.compile import roofline
from experiments.compile.roofline import Batch
from qempo_jax.models import presets
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import MAX_LOGITS

_FLOAT = 4
HELD = ("parameters", "optimizer", "reference")  # Parts that stay between updates.


def training(
  config: ModelConfig,
  batch: Batch,
  *,
  rank: int = 0,
  stored: int = _FLOAT,
  moments: int = _FLOAT,
  reference: bool = False,
  scores: bool = False,
  micro_batches: int = 1,
) -> dict[str, int]:
  """Bytes of one update, by part.

  Args:
    config: the decoder's config, with its rematerialisation policy.
    batch: the whole batch.
    rank: of adapters; 0 trains all weights.
    stored: bytes of a stored weight.
    moments: bytes of a moment.
    reference: True with a frozen reference beside the policy; adapters have none of their own.
    scores: True if attention scores are in memory, as in the XLA path.
    micro_batches: parts of the batch.
  """
  params = presets.num_params(config)
  trained = roofline.adapter_weights(config, rank) if rank else params
  gradient = trained * (_FLOAT if rank else stored)
  found = {
    "parameters": params * stored + (trained * _FLOAT if rank else 0),
    "optimizer": 2 * trained * moments,
    "gradient": gradient + (_FLOAT * trained if micro_batches > 1 else 0),
    "reference": params * stored if reference and not rank else 0,
    "head": 2 * _FLOAT * config.vocab_size * config.hidden_size + 4 * _FLOAT * MAX_LOGITS,
  }
  part = batch._replace(rows=-(-batch.rows // micro_batches))
  return found | {"activations": activations(config, part, scores=scores)}


def activations(config: ModelConfig, batch: Batch, *, scores: bool) -> int:
  """Bytes that the gradient of a batch keeps, and the working set of a block."""
  d, (heads, keys, f) = config.hidden_size, roofline.widths(config)
  products = heads + keys + d + 2 * f + d
  everything = products + 2 * (heads + keys) + 3 * d + 2 * f
  kept = {"full": d, "dots_no_batch": d + products, "dots": d + products, "none": d + everything}[config.remat]
  tokens = batch.fed(computed=True)
  square = 3 * config.num_heads * batch.pairs(computed=True) if scores else 0
  kept_square = square / 3 if config.remat in ("dots", "none") else 0
  total = tokens * (config.num_layers * kept + 2 * everything) + square + config.num_layers * kept_square
  return int(_FLOAT * total)


def sampling(config: ModelConfig, batch: Batch, *, kind: str, stored: int = _FLOAT, rank: int = 0) -> dict[str, int]:
  """Bytes of sampling a batch, by part; the training state is not in it."""
  params, width = presets.num_params(config), roofline.WIDTHS[config.compute_dtype]
  samples = batch.rows * batch.group
  prompts = batch.rows * batch.prompt
  prefill = roofline.cache_bytes(config, "float32") * prompts
  rings = roofline.cache_bytes(config, kind) * (prompts + samples * batch.response)
  rings += roofline.state_bytes(config) * (batch.rows + samples)
  scores = 2 * _FLOAT * batch.rows * config.num_heads * batch.prompt**2
  return {
    "parameters": params * stored + roofline.adapter_weights(config, rank) * _FLOAT,
    "parameters while sampling": params * width * (1 if stored == width else 2),
    "keys and values": 2 * rings + max(prefill, scores),
    "logits": 4 * _FLOAT * samples * config.vocab_size,
  }


def online(config: ModelConfig, batch: Batch, *, kind: str, rank: int = 0, stored: int = _FLOAT, **options) -> int:
  """Bytes of the larger of an online update and its sampling, the training state beside each; options of `training`."""
  update = training(config, batch, rank=rank, stored=stored, **options)
  drawn = sampling(config, batch, kind=kind, stored=stored, rank=rank)
  held = sum(update[name] for name in HELD)
  return held + max(sum(update.values()) - held, sum(drawn.values()) - drawn["parameters"])
