"""The rate of bare matrix products at a model's shapes: the floor of any step with these products.

The products are those of a block and of the head, forward and in both gradients. Each has its own weight as in a model,
so that weights come from memory. Operands have the given dtype and results float32, the fastest for either. A rate is
operations over the time of all products, each as often as it occurs.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.bench import serving

COPIES, HEAD_ROWS, REPEATS = 6, 256, 4


def prepare(spec: dict):
  """Returns a step that measures both rates once."""
  config = json.loads((pathlib.Path(spec["inputs"]) / "policy" / "config.json").read_text(encoding="utf-8"))
  d, f, k = config["hidden_size"], config["intermediate_size"], config["head_dim"]
  q, kv = config["num_attention_heads"] * k, config["num_key_value_heads"] * k
  layers, rows = config["num_hidden_layers"], spec["rows"]
  head_rows = min(rows, HEAD_ROWS)
  shapes = [
    (rows, *sizes, layers * count) for *sizes, count in ((d, q, 1), (d, kv, 2), (q, d, 1), (d, f, 2), (f, d, 1))
  ]
  shapes.append((head_rows, d, config["vocab_size"], rows / head_rows))
  rng = np.random.default_rng(0)
  dot = lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32)
  random = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32)).astype(spec["dtype"])

  def seconds_of(times, x, others, product):
    """Seconds of `times` products with the given operands in turn; the best of REPEATS."""
    run = jax.jit(product)
    jax.block_until_ready([run(x, other) for other in others])
    found = []
    for _ in range(REPEATS):
      started = time.perf_counter()
      jax.block_until_ready([run(x, other) for other in others])
      found.append((time.perf_counter() - started) / len(others))
    return times * min(found)

  def step():
    forward, trained, operations = 0.0, 0.0, 0.0
    for rows_x, width, out, times in shapes:
      copies = COPIES if out < 10_000 else 1
      x, g = random(rows_x, width), random(rows_x, out)
      weights = [random(width, out) for _ in range(copies)]
      one = seconds_of(times, x, weights, dot)
      forward += one
      trained += one + seconds_of(times, g, weights, lambda g, w: dot(g, w.T))
      trained += seconds_of(times, x.T, [g] * min(copies, 2), dot)
      operations += times * 2 * rows_x * width * out
    return {"forward": operations / forward, "trained": 3 * operations / trained}

  return step


if __name__ == "__main__":
  serving.serve(prepare)
