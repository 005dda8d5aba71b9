"""Log-prob and entropy with both gradients, chunk by chunk or by a plain log-softmax of all logits."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.bench import serving
from qempo_jax import token_stats

CHUNK = 1024


def prepare(spec: dict):
  """Returns a step that computes value and gradients of a weighted sum of log-probs and entropies."""
  tokens, width, vocabulary = (spec["shape"][name] for name in ("tokens", "width", "vocabulary"))
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (tokens, width))
  unembedding = jax.random.normal(keys[1], (vocabulary, width)) * width**-0.5
  targets = jax.random.randint(keys[2], (tokens,), 0, vocabulary)
  a, b = jax.random.normal(keys[3], (2, tokens))

  def chunked(hidden, unembedding):
    return token_stats.token_stats(hidden, unembedding, targets, temperature=1.0, chunk_size=CHUNK)

  def plain(hidden, unembedding):
    log_probs = jax.nn.log_softmax(hidden @ unembedding.T, axis=-1)
    chosen = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
    return token_stats.TokenStats(chosen, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1))

  stats_of = {"chunked": chunked, "plain": plain}[spec["options"]["way"]]

  def total(hidden, unembedding):
    stats = stats_of(hidden, unembedding)
    return jnp.mean(a * stats.log_prob + b * stats.entropy)

  program = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(hidden, unembedding).compile()
  temporary = program.memory_analysis().temp_size_in_bytes

  def step():
    value, (d_hidden, d_unembedding) = jax.block_until_ready(program(hidden, unembedding))
    seen = np.asarray(d_unembedding[:: vocabulary // 64]), np.asarray(d_hidden)
    norms = [float(np.linalg.norm(x)) for x in seen]
    return {"check": [float(value), *norms, float(jnp.max(jnp.abs(d_unembedding)))], "temporary_bytes": temporary}

  return step


if __name__ == "__main__":
  serving.serve(prepare)
