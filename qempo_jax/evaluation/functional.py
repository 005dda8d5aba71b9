"""Diversity of acceptable answers: coverage, entropy and effective number, one prompt at a time.

All figures count acceptable answers only (diverse garbage is not diversity). All depend on the number of samples, so
compare policies at equal numbers of samples a prompt.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError


class AnswerStatistics(NamedTuple):
  """Diversity of the acceptable answers in one prompt's samples.

  A prompt without an acceptable sample has coverage, entropy and effective number 0, the lowest value of each, so that
  a mean over prompts never gains from failing a prompt. The effective number tells it from a collapsed prompt, which
  has 1.
  """

  num_samples: int
  num_acceptable: int
  num_distinct: int
  coverage: float  # Distinct acceptable answers / size of the set.
  entropy: float  # Nats, plug-in estimate.
  entropy_miller_madow: float  # Nats, bias-corrected.
  effective_answers: float  # exp(entropy)


def answer_statistics(answers: Sequence[str | None], *, set_size: int) -> AnswerStatistics:
  """Statistics of the answers sampled for one prompt.

  With p_a the share of answer a among the acceptable samples,

    H = -sum_a p_a log p_a,    effective number of answers = exp(H).

  Both are plug-in estimates: with n acceptable samples H is biased low by about (distinct - 1) / (2n) and cannot
  exceed log n. `entropy_miller_madow` adds that first-order correction (Miller, "Note on the bias of information
  estimates", 1955), and is still low if most answers were never sampled. Use equal numbers of samples for all policies.

  Args:
    answers: canonical answer of every sample, None if the sample was not acceptable.
    set_size: number of acceptable answers that exist.

  Returns:
    AnswerStatistics; see there for a prompt without an acceptable sample.

  Raises:
    ValueError: there are no samples, or more distinct answers than the set holds.
  """
  if not answers:
    raise ValueError("answer_statistics needs at least one sample.")
  counts = np.array(list(answer_counts(answers).values()), float)
  distinct, acceptable = len(counts), int(counts.sum())
  if distinct > set_size:
    raise ValueError(f"{distinct} distinct acceptable answers in a set of {set_size}.")
  if not acceptable:
    return AnswerStatistics(len(answers), 0, 0, 0.0, 0.0, 0.0, 0.0)
  share = counts / acceptable
  entropy = max(0.0, float(-np.sum(share * np.log(share))))
  return AnswerStatistics(
    num_samples=len(answers),
    num_acceptable=acceptable,
    num_distinct=distinct,
    coverage=distinct / set_size,
    entropy=entropy,
    entropy_miller_madow=entropy + (distinct - 1) / (2 * acceptable),
    effective_answers=float(np.exp(entropy)),
  )


def acceptable_entropy(log_probs: np.ndarray, acceptable: np.ndarray) -> np.ndarray:
  """H(Y | acceptable) of each prompt, [P] nats, from the log-probs of samples of the policy itself.

    H(Y | A) = E[-log pi(y) | A] + log pi(A)

  Its exponential is the effective number of acceptable responses. Unlike `answer_statistics` it may exceed the logarithm
  of the number of samples, and counts different texts of one answer apart.

  Args:
    log_probs: [P, n] of whole responses, nats.
    acceptable: [P, n] booleans.

  Returns:
    [P]; NaN for a prompt without an acceptable sample.
  """
  share = np.mean(acceptable, axis=-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    cost = np.sum(np.where(acceptable, -log_probs, 0.0), axis=-1) / np.sum(acceptable, axis=-1)
    return cost + np.where(share > 0, np.log(share), np.nan)


def answer_counts(answers: Sequence[str | None]) -> Counter[str]:
  """Count of each acceptable answer, most frequent first, ties by name."""
  counts = Counter(answer for answer in answers if answer is not None)
  return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def distinct_k(outputs: Sequence[str | None], *, k: int, equivalence: Callable[[Sequence[str]], np.ndarray]) -> float:
  """Expected number of different acceptable outputs among k samples drawn without replacement.

    distinct_k = sum over classes c of 1 - C(n - n_c, k) / C(n, k),   n_c samples of class c among all n.

  With k = n it is the plain count of NoveltyBench (Zhang et al., https://arxiv.org/abs/2504.05228); for k < n it is the
  unbiased estimate for k samples. Range 0 to k; unacceptable outputs (None) take part in the draw and form no class. It
  ignores how even the classes are and how far apart; `answer_statistics` and the Vendi score measure that.

  Args:
    outputs: of one prompt, None if not acceptable.
    k: number of draws; use and report one value for all policies.
    equivalence: from outputs to labels, such as `equivalence.exact`.

  Raises:
    InputError: k is not between 1 and the number of samples, or the labels are not one an output.
  """
  if not 1 <= k <= len(outputs):
    raise InputError(f"distinct_{k} needs 1 <= k <= samples, and there are {len(outputs)}: sample more.")
  acceptable = [output for output in outputs if output is not None]
  labels = np.asarray(equivalence(acceptable)) if acceptable else np.zeros(0)
  if labels.shape != (len(acceptable),):
    raise InputError(f"The equivalence gave labels of shape {labels.shape} for {len(acceptable)} outputs.")
  sizes = np.unique(labels, return_counts=True)[1]
  return float(rarefied_types(sizes, total=len(outputs), size=k))


def rarefied_types(counts: np.ndarray, *, total: int, size: int) -> float:
  """Expected number of kinds among `size` of `total` items drawn without replacement, with counts[i] items of kind i.

    sum_i 1 - C(total - c_i, size) / C(total, size)

  Hurlbert, "The Nonconcept of Species Diversity", 1971. It is exact, so it needs no seed.
  """
  if not 0 <= size <= total:
    raise InputError(f"{size} items can't be drawn from {total} without replacement: lower the size.")
  return rarefied_types_of(*np.unique(np.asarray(counts, np.int64), return_counts=True), total=total, size=size)


def rarefied_types_of(kinds: np.ndarray, times: np.ndarray, *, total: int, size: int) -> float:
  """`rarefied_types` with times[i] kinds of count kinds[i], in rising order."""
  if not len(kinds):
    return 0.0
  # C(total - c, size) / C(total, size) = prod_{j < c} (total - size - j) / (total - j), 0 from a zero factor on.
  steps = np.arange(kinds[-1])
  with np.errstate(divide="ignore"):
    logs = np.log((total - size - steps).clip(min=0)) - np.log(total - steps)
  absent = np.exp(np.cumsum(logs))[kinds - 1]
  return float(np.sum(times * (1 - absent)))
