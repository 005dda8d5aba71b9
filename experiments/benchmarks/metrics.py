"""Run time of the metrics without a model: every lexical and functional figure over all outputs and above the floor.

CPU seconds are those of all threads, without other work on the machine.

  python -m experiments.benchmarks.metrics                        # 100 prompts x 20 samples of 60 words
  python -m experiments.benchmarks.metrics --samples=2000         # 100 prompts x 2,000 samples

Parts run in parallel processes. Texts are synthetic: words of one to three syllables by Zipf's law, a vocabulary of
5,000, each prompt with its own frequent words. Gzip takes 10 MB/s of them, 15 MB/s of real English answers.
"""

import argparse
from concurrent import futures
import multiprocessing
import os
import resource
import time
from typing import NamedTuple

import numpy as np

from qempo_jax.evaluation import above_floor
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import equivalence
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import protocol
from qempo_jax.evaluation import solutions

_CONSONANTS = "b d f g h k l m n p r s t v w st tr pl sh ch".split()
_VOWELS = "a e i o u ai ea ou an en in on er al".split()


class Samples(NamedTuple):
  """Inputs of the metrics: [prompts][samples] texts, [prompts, samples] rewards and tokens, settings of the bootstrap."""

  texts: list[list[str]]
  rewards: np.ndarray
  tokens: np.ndarray
  settings: dict


def main() -> None:
  """Prints the seconds of every part."""
  parser = argparse.ArgumentParser(description="Times the cheap metrics.")
  parser.add_argument("--prompts", type=int, default=100)
  parser.add_argument("--samples", type=int, default=20, help="per prompt")
  parser.add_argument("--words", type=int, default=60, help="per sample")
  parser.add_argument("--draws", type=int, default=1000, help="draws of the bootstrap")
  parser.add_argument("--processes", type=int, default=2)
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  shape = options.prompts, options.samples
  texts = made_up_texts(rng, *shape, options.words)
  rewards = (rng.random(shape) < 0.8).astype(float)
  global _samples  # shared with forked processes without a copy
  _samples = Samples(texts, rewards, np.full(shape, float(options.words)), {"num_draws": options.draws, "seed": 0})
  print(
    f"{shape[0]} prompts x {shape[1]} samples x {options.words} words, {options.draws} draws, {os.cpu_count()} cores"
  )
  print("elapsed       CPU      peak")
  start, cpu = time.perf_counter(), 0.0
  fork = multiprocessing.get_context("fork")
  with futures.ProcessPoolExecutor(options.processes, mp_context=fork) as pool:
    for job in futures.as_completed([pool.submit(_timed, name) for name in PARTS]):
      name, elapsed, used, peak = job.result()
      print(f"{elapsed:7.2f} s {used:7.2f} s {peak:6.2f} GB  {name}", flush=True)
      cpu += used
  print(f"{time.perf_counter() - start:7.2f} s {cpu:7.2f} s            in all")


def _figures(s: Samples) -> None:
  above_floor.diversity(
    s.texts, s.rewards, floor=0.5, num_tokens=s.tokens, truncated=s.tokens > 100, sequence_entropy=s.tokens * 0.7,
    **s.settings,
  )  # fmt: skip


def _functional(s: Samples) -> None:
  size = s.rewards.shape[1]
  answers = [[text.split()[0] for text in samples] for samples in s.texts]
  for row, accepted in zip(answers, s.rewards > 0, strict=True):
    kept = [answer if good else None for answer, good in zip(row, accepted, strict=True)]
    functional.answer_statistics(kept, set_size=5000)
    functional.distinct_k(kept, k=min(10, size), equivalence=equivalence.normalised)
    solutions.majority_at_k(kept, accepted, k=min(8, size))
  solutions.pass_at_k(np.full(len(answers), size), s.rewards.sum(axis=1).astype(int), k=min(8, size))


def _protocol(s: Samples) -> None:
  protocol.diversity({"method": s.texts}, axis="lexical", protocol="guo2024", num_draws=s.settings["num_draws"])


def _certificate(s: Samples) -> None:
  certificate.certify(
    s.rewards, constraint="reward", bound=0.75, direction="at least", value_range=(0, 1), **s.settings
  )


def _comparisons(s: Samples) -> None:
  comparisons.compare_with("a", {name: s.rewards + 0.01 * index for index, name in enumerate("abcdef")}, **s.settings)


# The longest part is first, so that two processes end together.
PARTS = {
  "lexical, all and above the floor, with intervals": _figures,
  "guo2024 lexical with its interval": _protocol,
  "five methods compared": _comparisons,
  "answers, distinct_k, pass@k, majority@k": _functional,
  "certificate": _certificate,
}
_samples: Samples | None = None


def _timed(name: str) -> tuple[str, float, float, float]:
  """Returns a part's name, elapsed and CPU seconds, and its process's peak memory so far, GB."""
  start = np.array([time.perf_counter(), time.process_time()])
  PARTS[name](_samples)
  elapsed, cpu = np.array([time.perf_counter(), time.process_time()]) - start
  return name, elapsed, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def made_up_texts(rng: np.random.Generator, prompts: int, samples: int, words: int) -> list[list[str]]:
  """[prompts][samples] texts of Zipf-distributed words."""
  vocabulary = np.array(made_up_words(rng, 5000))
  weights = 1 / np.arange(1, 5001)
  texts = []
  for _ in range(prompts):
    favourites = rng.permutation(5000)[:400]
    prompt_weights = weights.copy()
    prompt_weights[favourites] *= 20
    words_of_samples = vocabulary[rng.choice(5000, (samples, words), p=prompt_weights / prompt_weights.sum())]
    texts.append([" ".join(row) + "." for row in words_of_samples])
  return texts


def made_up_words(rng: np.random.Generator, count: int) -> list[str]:
  """Distinct words of one to three syllables."""
  syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
  words: dict[str, None] = {}
  while len(words) < count:
    words["".join(rng.choice(syllables, rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2])))] = None
  return list(words)


if __name__ == "__main__":
  main()
