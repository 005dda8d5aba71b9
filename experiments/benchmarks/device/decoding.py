"""Tokens a second of sampling, and the share of the memory's bandwidth that its steps need."""

import jax

from experiments.benchmarks.device import batches
from experiments.benchmarks.device import models
from experiments.compile import roofline
from experiments.compile.roofline import Batch
from qempo_jax.models import decoding
from qempo_jax.sampling import sampler


def measure(*, model: str, tiny: bool, kv_cache: str, batch: dict, repeats: int) -> dict:
  """Times a batch of samples and its prefill; a step's time is what remains, by token.

  Args:
    model: size.
    tiny: the stand-in for a CPU.
    kv_cache: dtype of keys and values.
    batch: sizes of the batch.
    repeats: runs; the median counts.
  """
  before = models.peak_bytes()
  shape, sizes = models.config(model, tiny=tiny, compute_dtype="bfloat16", kv_cache=kv_cache), Batch(**batch)
  params, prompts = models.params(shape, "bfloat16"), batches.prompts(sizes, shape.vocab_size)
  prefill, _ = models.compiled(
    lambda params, tokens, mask: decoding.prefill(params, shape, tokens, mask), params, prompts.tokens, prompts.mask
  )
  options = dict(group_size=sizes.group, max_length=sizes.response, temperature=1.0, stop_tokens=())
  sample = jax.jit(
    lambda params, prompts, key: sampler.sample_groups(
      params, shape, prompts, key, first_ring=sizes.response, **options
    )
  )
  program, compiled = models.compiled(sample, params, prompts, jax.random.key(0))
  whole = models.seconds(lambda: program(params, prompts, jax.random.key(1)), repeats=repeats)
  of_prefill = models.seconds(lambda: prefill(params, prompts.tokens, prompts.mask), repeats=repeats)
  step = max(whole - of_prefill, 0.0) / sizes.response
  samples = sizes.rows * sizes.group
  needed = roofline.decode_step(
    shape, prompts=sizes.rows, group=sizes.group, prompt=sizes.prompt, past=sizes.response / 2, kind=kv_cache
  )
  return {
    "tokens_per_second": samples * sizes.response / whole,
    "seconds": whole,
    "prefill_seconds": of_prefill,
    "step_seconds": step,
    "step_bytes": needed.bytes,
    "bytes_per_second": needed.bytes / step if step else None,
    "peak_bytes": models.peak_bytes(before),
    **compiled,
  }
