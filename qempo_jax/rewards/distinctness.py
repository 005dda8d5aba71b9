"""Distinctness of each response from the others of its group: a baseline with diversity in the reward."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
import unicodedata

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import groups
from qempo_jax.rewards import repetition
from qempo_jax.rewards import texts

_MAX_CHARS = 20_000  # Compared characters, from the start.


def same_words(prompt: Any, first: str, second: str) -> bool:
  """True if two responses are equal except for case, blanks and the marks around words."""
  del prompt
  return _bare_words(first) == _bare_words(second)


class DistinctnessReward:
  """Share of the group's other members in another class, times the quality if given.

      d_k = |{j != k: class(y_j) != class(y_k)}| / (G - 1)          r'_k = r_k d_k

  Classes come from an equivalence: each response joins the first class whose first member it is equivalent to. Rewards
  should be >= 0: repetition would improve a negative one. The score is 0.0 for a group of one.

  Source: Li et al., "Jointly reinforcing diversity and quality" (DARLING), arXiv 2509.02534; reconstruction. There a
  learned classifier is the equivalence, which can be passed here.
  """

  def __init__(
    self,
    *,
    equivalence: Callable[[Any, str, str], bool] | str = same_words,
    quality: Callable | str | None = None,
  ):
    """Stores the settings.

    Args:
      equivalence: (prompt, first, second) -> True if the two responses are equivalent; or its dotted path.
      quality: a reward function whose score is multiplied, or its dotted path; None: distinctness alone.
    """
    self._equivalent = checked.load(equivalence) if isinstance(equivalence, str) else equivalence
    self._quality = checked.load(quality) if isinstance(quality, str) else quality
    self.__name__ = "distinctness"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None if it is not text or has no quality score."""
    read = [None if text is None else text[:_MAX_CHARS] for text in texts.texts_of(completions)]
    distinct = groups.score_groups(self._score, prompts, read, columns)
    if self._quality is None:
      return distinct
    quality = self._quality(prompts, completions, **columns)
    return [None if None in pair else pair[0] * pair[1] for pair in zip(quality, distinct, strict=True)]

  def _score(self, prompt: Any, responses: list[str]) -> np.ndarray:
    classes = partition(lambda first, second: self._equivalent(prompt, first, second), responses)
    return groups.mean_over_others((classes[:, None] != classes[None]).astype(float))


class NgramDistinctnessReward:
  """One minus the mean overlap of a response's word n-grams with those of each other member of its group.

      d_k = 1 - mean_{j != k} |N_k & N_j| / |N_k | N_j|

  with N the sets of n-grams; responses shorter than n words are compared whole.
  """

  def __init__(self, *, n: int = 2):
    """Stores n, the words of an n-gram."""
    if n < 1:
      raise InputError(f"distinctness n={n}: it must be at least 1")
    self._n = n
    self.__name__ = f"ngram_distinctness({n})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None if it is not text."""
    read = [None if text is None else text[:_MAX_CHARS] for text in texts.texts_of(completions)]
    return groups.score_groups(self._score, prompts, read, columns)

  def _score(self, prompt: Any, responses: list[str]) -> np.ndarray:
    del prompt
    sets = [self._ngrams(text) for text in responses]
    distance = np.array([[1 - len(a & b) / len(a | b) for b in sets] for a in sets])
    return groups.mean_over_others(distance)

  def _ngrams(self, text: str) -> set[tuple[str, ...]]:
    words = _bare_words(text)
    return set(repetition.ngrams(words, self._n)) or {tuple(words)}


def partition(equivalent: Callable[[str, str], bool], responses: Sequence[str]) -> np.ndarray:
  """[n] class numbers: each response joins the first class whose first member it is equivalent to, or opens one."""
  first_members: list[str] = []
  classes = []
  for response in responses:
    known = (number for number, other in enumerate(first_members) if equivalent(other, response))
    number = next(known, len(first_members))
    if number == len(first_members):
      first_members.append(response)
    classes.append(number)
  return np.array(classes)


def _bare_words(text: str) -> list[str]:
  """Words without the marks around them."""
  stripped = (_bare(word) for word in texts.words_of(text))
  return [word for word in stripped if word]


def _bare(word: str) -> str:
  first, last = 0, len(word)
  while first < last and _is_mark(word[first]):
    first += 1
  while first < last and _is_mark(word[last - 1]):
    last -= 1
  return word[first:last]


def _is_mark(character: str) -> bool:
  """True for characters around a word that are not part of it: quotes, brackets, stops; not dashes, # or %."""
  if character.isascii():
    return character in ".,;:!?\"'`*()[]"
  kind = unicodedata.category(character)
  return kind[0] == "P" and kind != "Pd"
