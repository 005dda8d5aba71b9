"""Attention of packed rows by each path, compared with float32 over whole rows, and timed with its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.device import batches
from experiments.benchmarks.device import models
from experiments.compile.roofline import Batch
from qempo_jax.models import attention
from qempo_jax.models import layers
from qempo_jax.models import shared_prompt


def measure(*, model: str, tiny: bool, path: str, batch: dict, repeats: int) -> dict:
  """Times one path and its distance from the reference.

  Args:
    model: size; its heads count.
    tiny: the stand-in for a CPU.
    path: "xla" or "cudnn", which split prompt and responses; "whole rows" or "whole rows, cudnn", under one mask.
    batch: sizes of the batch.
    repeats: runs; the median counts.
  """
  shape, sizes = models.config(model, tiny=tiny, compute_dtype="bfloat16"), Batch(**batch)
  rows = batches.packed(sizes, *batches.tokens(sizes, shape.vocab_size))
  mask = shared_prompt.mask_of_rows(rows.positions, rows.segments, sizes.group)
  keys = jax.random.split(jax.random.key(0), 4)
  array = lambda key, heads: jax.random.normal(key, (*rows.tokens.shape, heads, shape.head_dim), jnp.float32)
  q, k, v = array(keys[0], shape.num_heads), *(array(key, shape.num_kv_heads) for key in keys[1:3])
  weight = array(keys[3], shape.num_heads) * (rows.segments >= 0)[..., None, None]
  name = "cudnn" if "cudnn" in path else "xla"
  chosen = dataclasses.replace(shape, attention=name)
  attend = shared_prompt.attender(rows, chosen)
  if path.startswith("whole rows"):
    run = lambda q, k, v: attention.attention(q, k, v, mask, chosen)
  else:
    run = lambda q, k, v: attend(q, k, v, None)

  def both(run):
    loss = lambda q, k, v: jnp.sum(run(q, k, v).astype(jnp.float32) * weight)
    return jax.jit(run), jax.jit(jax.grad(loss, (0, 1, 2)))

  (forward, gradient), compiled = both(run), {}
  forward, compiled["forward"] = models.compiled(forward, q, k, v)
  gradient, compiled["gradient"] = models.compiled(gradient, q, k, v)
  with jax.default_matmul_precision("highest"):
    exact = [f(q, k, v) for f in both(lambda q, k, v: layers.attention(q, k, v, mask, shape))]
  here = np.asarray(rows.segments >= 0)
  distance = lambda a, b: float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32))[here].max())
  size = lambda a: float(np.abs(np.asarray(a, np.float32))[here].max())
  return {
    "forward_error": distance(forward(q, k, v), exact[0]) / size(exact[0]),
    "gradient_error": max(distance(a, b) / size(b) for a, b in zip(gradient(q, k, v), exact[1])),
    "forward_seconds": models.seconds(lambda: forward(q, k, v), repeats=repeats),
    "gradient_seconds": models.seconds(lambda: gradient(q, k, v), repeats=repeats),
    "compile_seconds": sum(part["compile_seconds"] for part in compiled.values()),
    "temporary_bytes": max(part["temporary_bytes"] for part in compiled.values()),
  }
