"""How long the cheap metrics take: every lexical and functional figure over all outputs and above the floor.

CPU seconds, of all threads, leave out what other work on the machine takes.

  python -m experiments.benchmarks.metrics                        # 100 prompts x 20 samples of 60 words
  python -m experiments.benchmarks.metrics --samples=2000         # 100 prompts x 2,000 samples

Texts are made up: words by Zipf's law, a vocabulary of 5,000, each prompt with its own favourites.
"""

import argparse
import os
import time

import numpy as np

from qempo_jax.evaluation import above_floor
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import equivalence
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import protocol
from qempo_jax.evaluation import solutions


def main() -> None:
  """Prints the seconds of every part."""
  parser = argparse.ArgumentParser(description="Times the cheap metrics.")
  parser.add_argument("--prompts", type=int, default=100)
  parser.add_argument("--samples", type=int, default=20, help="a prompt")
  parser.add_argument("--words", type=int, default=60, help="a sample")
  parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  shape = options.prompts, options.samples
  texts = made_up_texts(rng, *shape, options.words)
  rewards = (rng.random(shape) < 0.8).astype(float)
  tokens = np.full(shape, float(options.words))
  settings = {"num_draws": options.draws, "seed": 0}

  def figures():
    return above_floor.diversity(
      texts, rewards, floor=0.5, num_tokens=tokens, truncated=tokens > 100, sequence_entropy=tokens * 0.7, **settings
    )

  def functional_figures():
    answers = [[text.split()[0] for text in samples] for samples in texts]
    for row, accepted in zip(answers, rewards > 0, strict=True):
      kept = [answer if good else None for answer, good in zip(row, accepted, strict=True)]
      functional.answer_statistics(kept, set_size=5000)
      functional.distinct_k(kept, k=min(10, shape[1]), equivalence=equivalence.normalised)
      solutions.majority_at_k(kept, accepted, k=min(8, shape[1]))
    solutions.pass_at_k(np.full(shape[0], shape[1]), rewards.sum(axis=1).astype(int), k=min(8, shape[1]))

  parts = {
    "lexical, all and above the floor, with intervals": figures,
    "answers, distinct_k, pass@k, majority@k": functional_figures,
    "guo2024 lexical with its interval": lambda: protocol.diversity(
      {"method": texts}, axis="lexical", protocol="guo2024", num_draws=options.draws
    ),
    "certificate": lambda: certificate.certify(
      rewards, constraint="reward", bound=0.75, direction="at least", value_range=(0, 1), **settings
    ),
    "five methods compared": lambda: comparisons.compare_with(
      "a", {name: rewards + 0.01 * index for index, name in enumerate("abcdef")}, **settings
    ),
  }
  print(
    f"{shape[0]} prompts x {shape[1]} samples x {options.words} words, {options.draws} draws, {os.cpu_count()} cores"
  )
  print("elapsed       CPU")
  start = previous = np.array([time.perf_counter(), time.process_time()])
  for name, run in parts.items():
    run()
    now = np.array([time.perf_counter(), time.process_time()])
    print("{:7.2f} s {:7.2f} s".format(*(now - previous)), "", name, flush=True)
    previous = now
  print("{:7.2f} s {:7.2f} s".format(*(previous - start)), " in all")


def made_up_texts(rng: np.random.Generator, prompts: int, samples: int, words: int) -> list[list[str]]:
  """[prompts][samples] texts of Zipf-distributed words."""
  vocabulary = np.array([f"word{index}" for index in range(5000)])
  weights = 1 / np.arange(1, 5001)
  texts = []
  for _ in range(prompts):
    favourites = rng.permutation(5000)[:400]
    own = weights.copy()
    own[favourites] *= 20
    drawn = vocabulary[rng.choice(5000, (samples, words), p=own / own.sum())]
    texts.append([" ".join(row) + "." for row in drawn])
  return texts


if __name__ == "__main__":
  main()
