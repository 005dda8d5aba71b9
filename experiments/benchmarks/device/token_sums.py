"""Log-probs and entropies of tokens by XLA or the kernel, compared with whole float32 logits, and timed."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.device import models
from qempo_jax import token_stats


def measure(*, tokens: int, width: int, vocab: int, dtype: str, implementation: str, repeats: int) -> dict:
  """Distances from whole logits on the first tokens, and seconds forward and with both gradients.

  Args:
    tokens: T.
    width: D.
    vocab: V.
    dtype: of the product's operands.
    implementation: "xla" or "pallas", of the forward sums.
    repeats: runs; the median counts.
  """
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (tokens, width))
  unembedding = 1.5 * width**-0.5 * jax.random.normal(keys[1], (vocab, width))
  targets = jax.random.randint(keys[2], (tokens,), 0, vocab)
  options = dict(temperature=1.0, chunk_size=1024, compute_dtype=dtype, implementation=implementation)
  stats = lambda hidden, unembedding: token_stats.token_stats(hidden, unembedding, targets, **options)
  loss = lambda hidden, unembedding: sum(jnp.mean(x) for x in stats(hidden, unembedding))
  forward, compiled = models.compiled(stats, hidden, unembedding)
  gradient, of_gradient = models.compiled(jax.grad(loss, (0, 1)), hidden, unembedding)
  few = min(tokens, 256)
  with jax.default_matmul_precision("highest"):
    exact = jax.jit(lambda h, w: token_stats.from_logits(h @ w.T, targets[:few]))(hidden[:few], unembedding)
  found = forward(hidden, unembedding)
  distance = lambda a, b: float(np.abs(np.asarray(a)[:few] - np.asarray(b)).max())
  return {
    "log_prob_error": distance(found.log_prob, exact.log_prob),
    "entropy_error": distance(found.entropy, exact.entropy),
    "forward_seconds": (seconds := models.seconds(lambda: forward(hidden, unembedding), repeats=repeats)),
    "gradient_seconds": models.seconds(lambda: gradient(hidden, unembedding), repeats=repeats),
    "flops": 2 * tokens * width * vocab / seconds,
    "compile_seconds": compiled["compile_seconds"] + of_gradient["compile_seconds"],
    "temporary_bytes": of_gradient["temporary_bytes"],
  }
