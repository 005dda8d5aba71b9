"""How many different acceptable answers a policy gives: coverage, entropy and effective number, one prompt at a time.

All figures count acceptable answers only (diverse garbage is not diversity) and all of them depend on the number of
samples: compare policies at the same number of samples a prompt.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError


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


def distinct_k(outputs: Sequence[str | None], *, k: int, equivalence: Callable[[Sequence[str]], np.ndarray]) -> float:
  """The expected number of different acceptable outputs among k samples drawn without replacement.

    distinct_k = sum over classes c of 1 - C(n - n_c, k) / C(n, k),   n_c samples of class c among all n.

  With k = n it is the plain count of NoveltyBench (Zhang et al., https://arxiv.org/abs/2504.05228); for k < n it is
  the unbiased estimate of what k samples would give. Range 0 to k; unacceptable outputs (None) take part in the draw
  and form no class. It counts, and does not see how even the classes are or how far apart: `answer_statistics` and
  the Vendi score do.

  Args:
    outputs: of one prompt, None where not acceptable.
    k: draws; state it, and use one for all policies.
    equivalence: from outputs to labels, such as `equivalence.exact`.

  Raises:
    InputError: if k is not between 1 and the number of samples, or the labels are not one an output.
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
  """The expected number of kinds among `size` of `total` items drawn without replacement, kind i having counts[i].

    sum_i 1 - C(total - c_i, size) / C(total, size)

  Hurlbert, "The Nonconcept of Species Diversity", 1971. Exact, so it needs no seed.
  """
  if not 0 <= size <= total:
    raise InputError(f"{size} items can't be drawn from {total} without replacement: lower the size.")
  return rarefied_types_of(*np.unique(np.asarray(counts, np.int64), return_counts=True), total=total, size=size)


def rarefied_types_of(kinds: np.ndarray, times: np.ndarray, *, total: int, size: int) -> float:
  """The same where times[i] kinds have the count kinds[i], in rising order."""
  if not len(kinds):
    return 0.0
  # C(total - c, size) / C(total, size) = prod_{j < c} (total - size - j) / (total - j), 0 from a zero factor on.
  steps = np.arange(kinds[-1])
  with np.errstate(divide="ignore"):
    logs = np.log((total - size - steps).clip(min=0)) - np.log(total - steps)
  absent = np.exp(np.cumsum(logs))[kinds - 1]
  return float(np.sum(times * (1 - absent)))
