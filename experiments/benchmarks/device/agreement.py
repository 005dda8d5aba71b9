"""Distance of the sampler's log-probs from the scorer's on the same samples, in nats, and the importance ratios of it."""

import contextlib

import jax
import numpy as np

from experiments.benchmarks.device import batches
from experiments.benchmarks.device import models
from experiments.compile.roofline import Batch
from qempo_jax import scoring
from qempo_jax.sampling import sampler

TRUSTED = (0.9, 1.1)


def measure(*, model: str, tiny: bool, dtype: str, kv_cache: str, precision: str, batch: dict) -> dict:
  """Samples, scores the samples, and compares.

  Args:
    model: size.
    tiny: the stand-in for a CPU.
    dtype: compute dtype.
    kv_cache: dtype of keys and values while sampling.
    precision: of float32 products, "highest", or "default": TF32 on recent GPUs.
    batch: sizes of the batch.
  """
  shape, sizes = models.config(model, tiny=tiny, compute_dtype=dtype, kv_cache=kv_cache), Batch(**batch)
  params = models.params(shape, "float32")
  prompts = batches.prompts(sizes, shape.vocab_size)
  options = dict(group_size=sizes.group, max_length=sizes.response, temperature=1.0)
  exact = jax.default_matmul_precision("highest") if precision == "highest" else contextlib.nullcontext()
  with exact:
    rollout = sampler.sample_groups(params, shape, prompts, jax.random.key(2), stop_tokens=(), **options)
    rows = batches.packed(sizes, np.asarray(prompts.tokens), np.asarray(rollout.tokens))
    score = jax.jit(lambda params, rows: scoring.score_groups(params, shape, rows, chunk_size=1024, **options))
    scored = score(params, rows)
  difference = np.asarray(scored.log_prob, np.float64) - np.asarray(rollout.log_probs, np.float64)
  entropies = np.abs(np.asarray(scored.entropy, np.float64) - np.asarray(rollout.entropies, np.float64))
  return {
    "largest": float(np.abs(difference).max()),
    "mean": float(np.abs(difference).mean()),
    "entropy_largest": float(entropies.max()),
    "tokens_outside": _outside(difference),
    "responses_outside": _outside(difference.sum(-1)),
    "tokens": difference.size,
    "token_log_prob": float(np.asarray(rollout.log_probs).mean()),
  }


def _outside(log_ratios: np.ndarray) -> float:
  """Share of importance ratios outside `TRUSTED`."""
  ratios = np.exp(log_ratios)
  return float(np.mean((ratios < TRUSTED[0]) | (ratios > TRUSTED[1])))
