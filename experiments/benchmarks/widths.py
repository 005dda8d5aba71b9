"""Shapes that a run with growing responses compiles, and the padding of its rows, for several spacings of widths.

  python -m experiments.benchmarks.widths

Lengths are simulated: gamma distributed with a coefficient of variation of 0.5, their mean growing from an eighth of the
limit to its half over the run, and cut at the limit.
"""

import argparse
import itertools

import numpy as np

from qempo_jax import packing


def quarters(value: int, bucket: int) -> int:
  """As `packing.bucketed`, a quarter apart."""
  width = 1
  while width * bucket < value:
    width += max(1, width // 4)
  return width * bucket


WIDTHS = {"every multiple": packing.round_up, "1/8 apart, as packed": packing.bucketed, "1/4 apart": quarters}


def shapes(widths, *, prompts: int, group: int, limit: int, steps: int, bucket: int) -> tuple[int, float]:
  """Number of distinct shapes (prompt width, reach, width of responses), and the padding's share of all columns."""
  rng, seen, real, padded = np.random.default_rng(0), set(), 0, 0
  for step in range(steps):
    mean = limit / 8 * 4 ** (step / steps)
    lengths = np.minimum(1 + rng.gamma(4.0, mean / 4, (prompts, group)).astype(int), limit)
    prompt = rng.integers(100, 400, prompts)
    fed = (lengths - 1).sum(axis=1)
    shape = tuple(widths(int(value), bucket) for value in (prompt.max(), lengths.max() - 1, fed.max()))
    seen.add(shape)
    real, padded = real + prompt.sum() + fed.sum(), padded + prompts * (shape[0] + shape[2])
  return len(seen), 1 - real / padded


def main() -> None:
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--prompts", type=int, default=64, help="rows of a step")
  parser.add_argument("--groups", type=int, nargs="+", default=[8, 16])
  parser.add_argument("--limits", type=int, nargs="+", default=[512, 4096, 32768], help="longest responses, tokens")
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--bucket", type=int, default=128)
  a = parser.parse_args()
  print("| G, T | " + " | ".join(WIDTHS) + " |\n" + "|---" * (len(WIDTHS) + 1) + "|")
  for group, limit in itertools.product(a.groups, a.limits):
    found = [
      shapes(widths, prompts=a.prompts, group=group, limit=limit, steps=a.steps, bucket=a.bucket)
      for widths in WIDTHS.values()
    ]
    print(f"| {group}, {limit} | " + " | ".join(f"{count}, {share:.0%}" for count, share in found) + " |")


if __name__ == "__main__":
  main()
