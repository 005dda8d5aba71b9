"""How many different acceptable answers a policy gives: coverage, entropy and effective number, one prompt at a time.

All figures count acceptable answers only (diverse garbage is not diversity) and all of them depend on the number of
samples: compare policies at the same number of samples a prompt.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class AnswerStatistics(NamedTuple):
  """What the samples of one prompt say about the diversity of its acceptable answers.

  A prompt without any acceptable sample has coverage 0, entropy 0 and effective number 0: the lowest value each can
  take, so that a mean over prompts never gains from failing a prompt, and the effective number tells it from a
  collapsed prompt, which has 1.
  """

  num_samples: int
  num_acceptable: int
  num_distinct: int
  coverage: float  # distinct acceptable answers / size of the set
  entropy: float  # nats, plug-in
  entropy_miller_madow: float  # nats, bias-corrected
  effective_answers: float  # exp(entropy)


def answer_statistics(answers: Sequence[str | None], *, set_size: int) -> AnswerStatistics:
  """Statistics of the answers sampled for one prompt.

  With p_a the share of answer a among the acceptable samples,

    H = -sum_a p_a log p_a,    effective number of answers = exp(H).

  Both are plug-in estimates: with n acceptable samples H is biased low by about (distinct - 1) / (2n) and cannot
  exceed log n. `entropy_miller_madow` adds that first-order correction (Miller, "Note on the bias of information
  estimates", 1955) and is still low where most answers were never seen. Use the same number of samples for every
  policy compared.

  Args:
    answers: the canonical answer of every sample, None where the sample was not acceptable.
    set_size: how many acceptable answers there are.

  Returns:
    AnswerStatistics; see there for a prompt without an acceptable sample.

  Raises:
    ValueError: if there are no samples, or more distinct answers than the set holds.
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


def answer_counts(answers: Sequence[str | None]) -> Counter[str]:
  """How often each acceptable answer occurs, most frequent first, ties by name."""
  counts = Counter(answer for answer in answers if answer is not None)
  return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))
