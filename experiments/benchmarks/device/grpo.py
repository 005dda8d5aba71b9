"""GRPO from end to end with a rule as reward: samples, rewards, packed rows, update; response tokens a second."""

import statistics
import time

import jax
import numpy as np

from experiments.benchmarks.device import batches
from experiments.benchmarks.device import models
from experiments.benchmarks.device import training
from experiments.compile.roofline import Batch
from qempo_jax.models import lora
from qempo_jax.sampling import sampler


def measure(*, model: str, tiny: bool, rank: int, dtype: str, kv_cache: str, batch: dict, repeats: int) -> dict:
  """Times whole updates, part by part.

  Args:
    model: size.
    tiny: the stand-in for a CPU.
    rank: of adapters; 0 trains all weights.
    dtype: of stored parameters and moments.
    kv_cache: dtype of keys and values while sampling.
    batch: sizes of the batch.
    repeats: updates that count, after one that does not.
  """
  before = models.peak_bytes()
  shape, sizes = models.config(model, tiny=tiny, compute_dtype="bfloat16", kv_cache=kv_cache), Batch(**batch)
  base, prompts = models.params(shape, dtype), batches.prompts(sizes, shape.vocab_size)
  update, state = training.online(shape, base, rank, dtype)
  as_policy = (lambda params, base: lora.apply(base, params)) if rank else (lambda params, base: params)
  options = dict(
    group_size=sizes.group, max_length=sizes.response, temperature=1.0, stop_tokens=(), first_ring=sizes.response
  )
  sample = jax.jit(
    lambda params, base, key: sampler.sample_groups(as_policy(params, base), shape, prompts, key, **options)
  )
  host_prompts, times = np.asarray(prompts.tokens), []
  for step in range(repeats + 1):
    clock = [time.perf_counter()]
    rollout = jax.device_get(sample(state.params, base, jax.random.key(step)))
    clock.append(time.perf_counter())
    rewards = np.mean(rollout.tokens % 2 == 0, axis=-1) > 0.5  # The rule: more even tokens than odd ones.
    rows = batches.packed(sizes, host_prompts, rollout.tokens)
    clock.append(time.perf_counter())
    state, metrics = jax.block_until_ready(update(state, base, batches.groups(sizes, rows, rewards)))
    clock.append(time.perf_counter())
    times.append(np.diff(clock).tolist())
  parts = [statistics.median(part) for part in zip(*times[1:])]
  tokens = sizes.rows * sizes.group * sizes.response
  return {
    "tokens_per_second": tokens / sum(parts),
    **dict(zip(("sample_seconds", "host_seconds", "update_seconds"), parts)),
    "first_seconds": sum(times[0]),
    "tokens": tokens,
    "skipped": float(metrics["skipped"]),
    "peak_bytes": models.peak_bytes(before),
  }
