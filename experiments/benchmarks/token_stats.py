"""Log-probability and entropy of every token, with both gradients: ours compared with the formula on whole logits.

  python -m experiments.benchmarks.token_stats --tokens=1024 --width=576 --vocab=49152 --output=token_stats.json

Both get the same float32 arrays and must agree to 1e-5. They run in turn, so that other work on the machine affects
both. Memory is the compiler's temporary memory, without arguments and results.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import token_stats


def whole_logits(hidden, unembedding, targets) -> token_stats.TokenStats:
  """The plain formula, for logits that fit in memory."""
  log_probs = jax.nn.log_softmax(hidden @ unembedding.T)
  chosen = jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
  return token_stats.TokenStats(chosen, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1))


def programs(tokens: int, width: int, vocab_size: int, sizes) -> tuple[dict, tuple]:
  """({(name, part): compiled program}, its arguments); parts are "forward" and "gradient", which includes the forward pass."""
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, unembedding = (
    jax.random.normal(keys[0], (tokens, width)),
    0.05 * jax.random.normal(keys[1], (vocab_size, width)),
  )
  targets = jax.random.randint(keys[2], (tokens,), 0, vocab_size)
  ways = {"whole logits": lambda h, w: whole_logits(h, w, targets)}
  for chunk_size, max_logits in sizes:
    ours = lambda h, w, c=chunk_size, m=max_logits: token_stats.token_stats(
      h, w, targets, temperature=1.0, chunk_size=c, max_logits=m
    )
    ways[f"ours, {chunk_size} tokens, {max_logits / 2**20:g} Mi logits"] = ours
  places = jnp.arange(tokens)
  weigh = lambda stats: jnp.sum(jnp.sin(places) * stats.log_prob + jnp.cos(places) * stats.entropy)
  found = {}
  for name, way in ways.items():
    parts = {"forward": way, "gradient": jax.value_and_grad(lambda h, w, way=way: weigh(way(h, w)), (0, 1))}
    found |= {(name, part): jax.jit(f).lower(hidden, unembedding).compile() for part, f in parts.items()}
  return found, (hidden, unembedding)


def measure(tokens: int, width: int, vocab_size: int, *, sizes, repeats: int) -> list[dict]:
  """Runs all programs in turn, `repeats` times; returns one row per program and part."""
  found, arrays = programs(tokens, width, vocab_size, sizes)
  seconds = {name: [] for name in found}
  for part in ("forward", "gradient"):
    results = {name: jax.tree.leaves(jax.device_get(found[name](*arrays))) for name in found if name[1] == part}
    expected = results["whole logits", part]
    for result in results.values():
      for a, b in zip(result, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max())))
  for _ in range(repeats):
    for name, program in found.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*arrays))
      seconds[name].append(time.perf_counter() - start)
  rows = []
  for (name, part), program in found.items():
    times, plain = seconds[name, part], seconds["whole logits", part]
    rows.append(
      {
        "name": name,
        "part": part,
        "median_seconds": statistics.median(times),
        "fastest_seconds": min(times),
        "ratio": statistics.median(a / b for a, b in zip(times, plain)),
        "temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
      }
    )
  return rows


def main() -> None:
  """Prints a table, and writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokens", type=int, default=1024)
  parser.add_argument("--width", type=int, default=576)
  parser.add_argument("--vocab", type=int, default=49152)
  parser.add_argument("--sizes", default="256:24", help="chunk_size:log2 of max_logits, comma-separated")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--output", type=pathlib.Path)
  arguments = parser.parse_args()
  sizes = [(int(chunk), 2 ** int(bits)) for chunk, bits in (size.split(":") for size in arguments.sizes.split(","))]
  rows = measure(arguments.tokens, arguments.width, arguments.vocab, sizes=sizes, repeats=arguments.repeats)
  print(f"{arguments.tokens} tokens, width {arguments.width}, vocabulary {arguments.vocab}, {os.cpu_count()} cores")
  for row in rows:
    print(
      f"{row['part']:9} {row['name']:32} median {row['median_seconds']:.3f} s, fastest {row['fastest_seconds']:.3f} s,"
      f" {row['ratio']:.2f} of whole logits, {row['temporary_mib']:.0f} MiB"
    )
  if arguments.output:
    settings = {name: getattr(arguments, name) for name in ("tokens", "width", "vocab", "repeats")}
    device = jax.devices()[0].device_kind
    arguments.output.write_text(
      json.dumps(
        {**settings, "device": device, "cores": os.cpu_count(), "jax": jax.__version__, "rows": rows}, indent=1
      )
      + "\n"
    )


if __name__ == "__main__":
  main()
