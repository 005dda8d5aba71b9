"""The one table of allowed values of config keys: ranges of numbers, and choices."""

from collections.abc import Iterator
import math
from typing import Any
from typing import NamedTuple

from ml_collections import ConfigDict

from qempo_jax.errors import InputError
from qempo_jax.evaluation.diversity_metrics import AXES
from qempo_jax.kernels.choice import TOKEN_STATS
from qempo_jax.models import export_tensors
from qempo_jax.models.config import ATTENTIONS
from qempo_jax.models.config import KV_CACHES
from qempo_jax.models.config import REMATS

DTYPES = ("float32", "bfloat16")
_SIZE = 2**20  # largest count of prompts, samples or tokens; more is a slip of the finger


class Range(NamedTuple):
  """Numbers from `low` to `high`, both included unless open."""

  low: float = -math.inf
  high: float = math.inf
  low_open: bool = False
  high_open: bool = False

  def holds(self, value: float) -> bool:
    """True where a number is finite and in the range."""
    above = value > self.low if self.low_open else value >= self.low
    below = value < self.high if self.high_open else value <= self.high
    return math.isfinite(value) and above and below

  def __str__(self) -> str:
    ends, said = [], lambda end: f"{end:.0f}" if end == int(end) else f"{end:g}"
    if self.low > -math.inf:
      ends.append(f"{'above' if self.low_open else 'at least'} {said(self.low)}")
    if self.high < math.inf:
      ends.append(f"{'below' if self.high_open else 'at most'} {said(self.high)}")
    return " and ".join(ends) or "finite"


_NOT_NEGATIVE, _POSITIVE = Range(0), Range(0, low_open=True)
_COUNT, _COUNT_OR_0, _SEED = Range(1, _SIZE), Range(0, _SIZE), Range(0, 2**31 - 1)
_SHARE, _DECAY = Range(0, 1), Range(0, 1, high_open=True)
_STEPS = Range(0, 10**9)

_CONSTRAINT = {
  "margin": _NOT_NEGATIVE,
  "quantile": _SHARE,
  "width": _NOT_NEGATIVE,
  "start": _NOT_NEGATIVE,
  "parametrisation": ("linear", "log", "softplus"),
  "gain": _NOT_NEGATIVE,
  "proportional_gain": _NOT_NEGATIVE,
}
# Range or choices by key. A number that has no row must be finite; a text that has none may be any.
ALLOWED: dict[str, Range | tuple[str, ...]] = {
  "seed": _SEED,
  "steps": _STEPS,
  "model.dtype": DTYPES,
  "data.on_bad_row": ("error", "skip"),
  "data.max_bad_share": _SHARE,
  "data.length_window": _COUNT_OR_0,
  "data.prompts_per_step": _COUNT,
  "data.too_long": ("drop", "truncate", "error"),
  "data.max_prompt_length": _COUNT,
  "sampling.group_size": _COUNT,
  "sampling.max_response_length": _COUNT,
  "sampling.temperature": _NOT_NEGATIVE,
  "sampling.top_k": _COUNT_OR_0,
  "sampling.top_p": Range(0, 1, low_open=True),
  "sampling.min_p": _SHARE,
  "sampling.min_response_length": _COUNT_OR_0,
  "sampling.stale_steps": Range(0, 1),
  "sampling.max_importance": _POSITIVE,
  "sampling.slots": _COUNT_OR_0,
  "sampling.halvings": Range(0, 20),
  "replay.size": _COUNT_OR_0,
  "replay.weight": _NOT_NEGATIVE,
  "replay.capacity": _COUNT,
  "offline.weights": ("fixed", "multipliers"),
  "offline.alpha": _POSITIVE,
  "offline.beta": _NOT_NEGATIVE,
  "offline.label_smoothing": Range(0, 0.5, high_open=True),
  "offline.desirable_weight": _NOT_NEGATIVE,
  "offline.undesirable_weight": _NOT_NEGATIVE,
  "offline.nll_weight": _NOT_NEGATIVE,
  "offline.list_size": Range(2, _SIZE),
  "offline.pair_weight": _NOT_NEGATIVE,
  "offline.pairs": ("source", "sampled", "answers_against_samples"),
  "offline.pairs_per_step": _COUNT,
  "offline.pairs_per_row": _COUNT,
  "offline.pairs_per_prompt": _COUNT,
  "offline.measure_every": _STEPS,
  "reward_model.heldout_share": _DECAY,
  "reward_model.validation_share": _DECAY,
  "reward_model.pairs_per_source": _STEPS,
  "reward_model.heldout_per_source": _STEPS,
  "reward_model.pairs_per_step": _COUNT,
  "reward_model.margin_scale": _NOT_NEGATIVE,
  "reward_model.centring_weight": _NOT_NEGATIVE,
  "reward_model.validate_every": _STEPS,
  **{f"duals.floors.{name}": allowed for name, allowed in _CONSTRAINT.items()},
  "duals.smoothing": _DECAY,
  "duals.delay": _STEPS,
  "duals.cap": _POSITIVE,
  "duals.averaging": _DECAY,
  "optimizer.learning_rate": _POSITIVE,
  "optimizer.warmup_steps": _STEPS,
  "optimizer.final_fraction": _NOT_NEGATIVE,
  "optimizer.b1": _DECAY,
  "optimizer.b2": _DECAY,
  "optimizer.weight_decay": _NOT_NEGATIVE,
  "optimizer.max_grad_norm": _POSITIVE,
  "optimizer.moments_dtype": DTYPES,
  "optimizer.router_weight": _NOT_NEGATIVE,
  "lora.rank": _COUNT_OR_0,
  "lora.alpha": _POSITIVE,
  "compute.dtype": DTYPES,
  "compute.attention": ATTENTIONS,
  "compute.kv_cache": KV_CACHES,
  "compute.remat": REMATS,
  "compute.token_stats": TOKEN_STATS,
  "compute.micro_batches": _COUNT,
  "compute.chunk_size": Range(1, 2**30),
  "compute.bucket": _COUNT,
  "compute.reference_memory": ("device", "host"),
  "make_pairs.per_prompt": _COUNT,
  "make_pairs.tie_quantile": _SHARE,
  "make_pairs.share": _SHARE,
  "make_pairs.uses": _COUNT,
  "inspection.examples": _COUNT_OR_0,
  "alarms.max_entropy_per_token": _POSITIVE,
  "checkpoint.every": Range(-1, 10**9),
  "checkpoint.minutes": _NOT_NEGATIVE,
  "checkpoint.keep": _COUNT,
  "logging.profile_steps": _STEPS,
  "logging.profile_after": _STEPS,
  "faults.max_skipped_in_row": _STEPS,
  "faults.grace_seconds": _NOT_NEGATIVE,
  "export.dtype": tuple(export_tensors.DTYPES),
  "export.max_shard_gb": _POSITIVE,
  "export.tolerance": _NOT_NEGATIVE,
  "feasibility.samples_per_prompt": _COUNT,
  "evaluation.every": _STEPS,
  "evaluation.patience": _COUNT_OR_0,
  "evaluation.samples_per_prompt": _COUNT,
  "evaluation.prompts_per_batch": _COUNT,
  "evaluation.seed": _SEED,
  "evaluation.max_prompts": _STEPS,
  "evaluation.temperature": _NOT_NEGATIVE,
  "evaluation.top_k": _COUNT_OR_0,
  "evaluation.top_p": Range(0, 1, low_open=True),
  "evaluation.min_p": _SHARE,
  "evaluation.max_prompt_length": _COUNT_OR_0,
  "evaluation.max_response_length": _COUNT_OR_0,
  "evaluation.axes": AXES,
  "evaluation.floor_kind": ("absolute", "reference quantile", "reference minus"),
  "evaluation.matched": _COUNT_OR_0,
  "evaluation.look": _COUNT,
  "evaluation.planned_looks": _COUNT_OR_0,
  "evaluation.num_draws": _COUNT,
}
# Sequences of texts.
_TEXTS = {
  "data.sets", "evaluation.axes", "evaluation.cluster", "evaluation.splits", "reward_model.heldout", "reward_model.sources",
  "sampling.allowed_tokens", "sampling.stop_strings",
}  # fmt: skip


def check(config: ConfigDict) -> None:
  """Raises InputError for the first value out of range; names key, value and the allowed ones."""
  for key, value in _leaves(config):
    allowed = ALLOWED.get(key)
    if key.startswith("constraints."):
      allowed = _CONSTRAINT.get(key.rpartition(".")[2])
    if key in _TEXTS and not all(isinstance(part, str) for part in value):
      raise InputError(f"config.{key}={value!r} must hold texts alone, such as ('a', 'b')")
    if isinstance(allowed, tuple) and not isinstance(allowed, Range):
      for part in value if key in _TEXTS else (value,):
        if part not in allowed:
          raise InputError(f"config.{key}={part!r} is not one of {', '.join(allowed)}")
    for number in _numbers(value):
      limits = allowed if isinstance(allowed, Range) else Range()
      if not limits.holds(number):
        raise InputError(f"config.{key}={value} must be {limits}")


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _numbers(value: Any) -> Iterator[float]:
  """The numbers in a value, those of nested tuples too; true and false are none."""
  if isinstance(value, (tuple, list)):
    for part in value:
      yield from _numbers(part)
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield value
