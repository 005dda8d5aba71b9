"""Figures of one method on one split: of samples, of answers, of solutions, and of diversity."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qempo_jax.evaluation import above_floor
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import equivalence
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import solutions
from qempo_jax.evaluation.rows import SplitSamples
from qempo_jax.rewards import answers as known_answers

PER_SAMPLE = ("reward", "entropy", "kl", "length", "words", "truncation", "noncanonical", "unscored", "repetition")
KS = (1, 8, 64)  # k of pass@k, majority@k and distinct@k, as far as samples suffice.


class Settings(NamedTuple):
  """Settings of every interval."""

  level: float
  num_draws: int
  seed: int
  clusters: families.Clusters | None = None


def figures(samples: SplitSamples, set_sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Every figure as [prompts, seeds * samples] if each sample has one, else [prompts, seeds]; NaN if undefined.

  Coverage is NaN for prompts without a set of known answers.
  """
  num_prompts, raw = len(samples.prompts), samples.figures
  sizes = [set_sizes.get(name) or (known_answers.set_size(name) if name else None) for name in samples.set_names]
  statistics = [
    [functional.answer_statistics(answers, set_size=size or len(answers)) for answers in of_prompt]
    for size, of_prompt in zip(sizes, samples.answers, strict=True)
  ]

  def per_prompt(field):
    return np.array([[getattr(cell, field) for cell in line] for line in statistics], float)

  flat = [text for of_prompt in samples.completions for of_seed in of_prompt for text in of_seed]
  per_sample = {
    "reward": raw["reward"],
    "entropy": raw["entropy"],
    "kl": raw["log_prob"] - raw["ref_log_prob"],
    "length": raw["num_tokens"],
    "words": np.array([len(lexical.split(text)) for text in flat], float),
    "truncation": raw["truncated"],
    "noncanonical": raw["noncanonical"],
    "unscored": raw["unscored"],
    "repetition": lexical.repeated_shares(lexical.encode(flat)),
  }
  known = np.array([np.nan if size is None else 1.0 for size in sizes])[:, None]
  return {name: values.reshape(num_prompts, -1) for name, values in per_sample.items()} | {
    "entropy_per_token": raw["entropy"].mean(axis=2) / np.maximum(raw["num_tokens"].mean(axis=2), 1),
    "effective_answers": per_prompt("effective_answers"),
    "coverage": per_prompt("coverage") * known,
    "distinct_answers": per_prompt("num_distinct"),
    "distinct_wrong": _distinct_wrong(samples),
    "answer_entropy": per_prompt("entropy"),
    "answer_entropy_miller_madow": per_prompt("entropy_miller_madow"),
  }


def _distinct_wrong(samples: SplitSamples) -> np.ndarray:
  """[prompts, seeds] number of different normal forms of unacceptable outputs."""
  return np.array(
    [
      [
        len({equivalence.normal_form(text) for text, answer in zip(texts, answers, strict=True) if answer is None})
        for texts, answers in zip(of_prompt, answers_of_prompt, strict=True)
      ]
      for of_prompt, answers_of_prompt in zip(samples.completions, samples.answers, strict=True)
    ],
    float,
  )


def for_bootstrap(name: str, values: np.ndarray) -> np.ndarray:
  """Per-sample figures unchanged, for the two-stage bootstrap; per-prompt figures averaged over seeds."""
  return values if name in PER_SAMPLE else values.mean(axis=1)


def interval(values: np.ndarray, settings: Settings) -> intervals.Interval:
  """Mean with its interval; all NaN if a value is missing."""
  if not np.all(np.isfinite(values)):
    return intervals.Interval(np.nan, np.nan, np.nan)
  return intervals.mean_interval(values, **settings._asdict())


def solution_figures(samples: SplitSamples, *, settings: Settings) -> dict[str, dict]:
  """pass@k, majority@k and distinct@k of each k in `KS` that the samples reach: means over prompts with intervals.

  A sample is correct if its reward is acceptable. Votes are for normal forms, or for canonical answers if prompts have
  a set; distinct@k counts different correct ones. Seeds are evaluated separately, then averaged.
  """
  correct = samples.figures["acceptable"]  # [prompts, seeds, samples]
  size = correct.shape[2]
  results = {}
  for k in (k for k in KS if k <= size):
    passed = solutions.pass_at_k(np.full(correct.shape[:2], size), correct.sum(axis=2), k=k)
    results[f"pass@{k}"] = interval(passed.mean(axis=1), settings)._asdict()
    if k == 1:  # The other two are equal to it.
      continue
    votes, kinds = np.zeros(correct.shape[:2]), np.zeros(correct.shape[:2])
    for index in np.ndindex(*correct.shape[:2]):
      texts, right = samples.completions[index[0]][index[1]], correct[index]
      names = samples.answers[index[0]][index[1]]
      # A form that is right in one sample and wrong in another counts as two answers.
      ballots = [
        (name or equivalence.normal_form(text), bool(ok)) for name, text, ok in zip(names, texts, right, strict=True)
      ]
      votes[index] = solutions.majority_at_k(ballots, right, k=k, seed=settings.seed)
      kept = [ballot if ballot[1] else None for ballot in ballots]
      kinds[index] = functional.distinct_k(kept, k=k, equivalence=equivalence.exact)
    for name, values in (("majority", votes), ("distinct", kinds)):
      results[f"{name}@{k}"] = interval(values.mean(axis=1), settings)._asdict()
  return results


def diversity_figures(
  samples: SplitSamples,
  *,
  metrics: Mapping[str, above_floor.Metric],
  acceptable: float,
  matched: int | None,
  settings: Settings,
) -> dict:
  """Every metric over all outputs and above the floor: {"all_outputs" or "above_floor": {name: interval and corpus}}.

  Seeds are evaluated separately, then averaged: pooled seeds would look more diverse than any one policy is.
  """
  by_seed = [_of_seed(samples, index, metrics, acceptable, matched, settings) for index in range(len(samples.seeds))]
  results: dict = {"acceptable_at": acceptable, "matched": matched}
  results["acceptable_per_prompt"] = float(np.mean([of_seed.acceptable_per_prompt for of_seed in by_seed]))
  for part in ("all_outputs", "above_floor"):
    results[part] = {}
    for name in metrics:
      seeds = [getattr(of_seed, part)[name] for of_seed in by_seed]
      mean = interval(np.mean([figure.per_prompt for figure in seeds], axis=0), settings)
      results[part][name] = mean._asdict() | {"corpus": float(np.mean([figure.corpus for figure in seeds]))}
  return results


def _of_seed(samples, index, metrics, acceptable, matched, settings) -> above_floor.Diversity:
  texts: Sequence[Sequence[str]] = [of_prompt[index] for of_prompt in samples.completions]
  rewards, judged = samples.figures["reward"][:, index], samples.figures["acceptable"][:, index]
  return above_floor.diversity(
    texts,
    np.where(judged, rewards, np.minimum(rewards, acceptable - 1)),  # What could not be judged is not acceptable.
    floor=acceptable,
    metrics=metrics,
    matched=matched,
    level=settings.level,
    num_draws=1,  # Intervals of single seeds are not used.
    seed=settings.seed,
  )
