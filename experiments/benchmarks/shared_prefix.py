"""What sharing a group's prompt saves in training: one step's gradient with it, and with a prompt for each response.

  python -m experiments.benchmarks.shared_prefix --group=32 --prompt=512 --response=32 --output=shared_prefix.json

Both ways score the same tokens with the same random parameters and must give the same log-probabilities. They run in
turn, so that other work on the machine meets both alike, and times are CPU seconds of all threads. The products' FLOPs
are counted beside them, which no load changes: six a parameter of the blocks and fed token (eight where blocks are
recomputed), likewise for the head and each scored token.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

SHAPES = {
    "smollm2": ModelConfig(49152, 576, 1536, 30, 9, 3, 64, 10_000.0, 1e-5, True),
    "tiny": ModelConfig(512, 64, 128, 2, 4, 2, 16, 10_000.0, 1e-5, True),
}


def batches(vocab_size: int, group: int, prompt: int, response: int, bucket: int):
  """The same random tokens packed both ways: {name: (PackedGroups, responses a row)}."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab_size, prompt).tolist()
  answers = rng.integers(0, vocab_size, (group, response)).tolist()
  return {
      "shared": (packing.pack_groups([tokens], [answers], bucket=bucket), group),
      "unshared": (packing.pack_groups([tokens] * group, [[answer] for answer in answers], bucket=bucket), 1),
  }


def program(config: ModelConfig, params, packed, group: int, response: int, chunk_size: int):
  """The compiled value and gradient of a sum of log-probabilities and entropies; also returns the former."""

  def total(params, packed):
    stats = scoring.score_groups(
        params, config, packed, group_size=group, max_length=response, temperature=1.0, chunk_size=chunk_size
    )
    return jnp.sum(stats.log_prob + 0.1 * stats.entropy), stats.log_prob

  return jax.jit(jax.grad(total, has_aux=True)).lower(params, packed).compile()


def measure(config: ModelConfig, *, group: int, prompt: int, response: int, bucket: int, repeats: int) -> dict:
  """Both ways in turn; see the module."""
  params = transformer.init(jax.random.key(0), config)
  ways = batches(config.vocab_size, group, prompt, response, bucket)
  programs = {name: program(config, params, packed, size, response, 256) for name, (packed, size) in ways.items()}
  run = lambda name: jax.block_until_ready(programs[name](params, ways[name][0]))
  log_probs = {name: np.ravel(run(name)[1]) for name in ways}
  difference = float(np.abs(log_probs["shared"] - log_probs["unshared"]).max())
  seconds = {name: [] for name in ways}
  for _ in range(repeats):
    for name in ways:
      started = time.process_time()
      run(name)
      seconds[name].append(time.process_time() - started)
  result = {"setting": {"group": group, "prompt": prompt, "response": response, "bucket": bucket}}
  result |= {"model": dataclasses.asdict(config), "largest_difference_nats": difference, "load": os.getloadavg()}
  for name, (packed, _) in ways.items():
    result[name] = {
        "places": int(np.prod(packed.tokens.shape)),
        "teraflops": flops(config, packed.tokens.size, packed.source.size) / 1e12,
        "cpu_seconds": seconds[name],
        "temporary_bytes": programs[name].memory_analysis().temp_size_in_bytes,
    }
  median = lambda name: statistics.median(seconds[name])
  result["ratio_cpu_seconds"] = median("unshared") / median("shared")
  result["ratio_flops"] = result["unshared"]["teraflops"] / result["shared"]["teraflops"]
  return result


def flops(config: ModelConfig, fed: int, scored: int) -> int:
  """Of the products with weights, in a step that recomputes blocks and logits once."""
  shapes = transformer.param_shapes(config)["layers"]
  blocks = sum(int(np.prod(shape)) for shape in shapes.values() if len(shape) > 2)
  return 8 * (blocks * fed + config.vocab_size * config.hidden_size * scored)


def main(arguments=None) -> dict:
  """Prints the figures, and writes them where `--output` says."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", choices=SHAPES, default="smollm2")
  for name, default in (("group", 32), ("prompt", 512), ("response", 32), ("bucket", 32), ("repeats", 3)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--output", help="a JSON file")
  given = vars(parser.parse_args(arguments))
  output, config = given.pop("output"), SHAPES[given.pop("model")]
  result = measure(config, **given)
  for name in ("unshared", "shared"):
    one = result[name]
    times = ", ".join(f"{s:.2f}" for s in one["cpu_seconds"])
    print(f"{name}: {one['places']} places, {one['teraflops']:.3g} TFLOP, {times} CPU s,"
          f" {one['temporary_bytes'] / 2**20:.0f} MiB beyond arguments")
  print(f"ratio {result['ratio_cpu_seconds']:.1f} by CPU seconds, {result['ratio_flops']:.1f} by FLOPs;"
        f" log-probs differ by {result['largest_difference_nats']:.1e} nats; load {result['load'][0]:.1f}")
  if output:
    with open(output, "w", encoding="utf-8") as file:
      json.dump(result, file, indent=1)
  return result


if __name__ == "__main__":
  main()
