"""When two outputs count as the same: a choice that every count of different outputs rests on, so it is named.

An equivalence here is a function from one prompt's outputs to a label each, equal labels for the same class. Exact and
normalised sameness are true equivalences; a judgement between pairs (overlap, distance, a classifier) need not be
transitive, and then an output joins the first class, in sampling order, whose first member it is the same as, as in
NoveltyBench (Zhang et al., https://arxiv.org/abs/2504.05228).
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import semantic
from qempo_jax.rewards import normal_form as forms

Equivalence = Callable[[Sequence[str]], np.ndarray]


def exact(outputs: Sequence[Hashable]) -> np.ndarray:
  """[outputs] labels: the same only where equal to the last character."""
  seen: dict = {}
  return np.array([seen.setdefault(output, len(seen)) for output in outputs], np.int64)


def normalised(outputs: Sequence[str]) -> np.ndarray:
  """[outputs] labels: the same where `rewards.normal_form` gives one form."""
  return exact([normal_form(output) for output in outputs])


def normal_form(text: str) -> str:
  """A text without case, Unicode variants, punctuation, articles and blanks; signs that change an answer stay (C++, -5)."""
  return forms.normal_form(text)


def ngram_overlap(*, threshold: float, n: int = 2) -> Equivalence:
  """The same where the sets of word n-grams overlap by at least `threshold`: |A and B| / |A or B| (Jaccard, 1901).

  Texts shorter than n words are compared by their whole sequence of words.
  """
  if not 0 < threshold <= 1:
    raise InputError(f"The overlap threshold is {threshold}: it must lie in (0, 1].")

  def label(outputs):
    sets = []
    for output in outputs:
      tokens = lexical.words(output)
      sets.append({tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))})
    return _greedy(len(sets), lambda i, j: len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]))

  return label


def embedding_threshold(embed: Callable[[Sequence[str]], np.ndarray], *, threshold: float) -> Equivalence:
  """The same where the cosine of the embeddings is at least `threshold`; the encoder is part of the definition."""

  def label(outputs):
    if not len(outputs):
      return np.zeros(0, np.int64)
    unit = semantic.unit_rows(embed(outputs))
    cosine = unit @ unit.T
    return _greedy(len(unit), lambda i, j: cosine[i, j] >= threshold)

  return label


def classifier(same: Callable[[str, str], bool]) -> Equivalence:
  """The same where `same(first member of the class, output)` says so, such as a trained model of pairs.

  It is asked at most once for each pair of different texts, and not at all for equal ones.
  """

  def label(outputs):
    seen: dict[tuple[str, str], bool] = {}

    def ask(i, j):
      pair = outputs[i], outputs[j]
      if pair[0] == pair[1]:
        return True
      if pair not in seen:
        seen[pair] = bool(same(*pair))
      return seen[pair]

    return _greedy(len(outputs), ask)

  return label


def _greedy(count, same):
  """[count] labels; each item joins the first class whose first member it is the same as."""
  representatives: list[int] = []
  labels = np.empty(count, np.int64)
  for item in range(count):
    for label, representative in enumerate(representatives):
      if same(representative, item):
        labels[item] = label
        break
    else:
      labels[item] = len(representatives)
      representatives.append(item)
  return labels
