"""Guards against long but worthless responses: repetition, and diverse garbage."""

from collections.abc import Sequence
import math
from typing import Any
import zlib

from qempo_jax.errors import InputError
from qempo_jax.rewards import texts

_MAX_CHARS = 100_000  # Examined characters, from the start.


class RepetitionReward:
  """Share of a response's word n-grams that are different: 1.0 if none is repeated.

      score = |set of n-grams| / |n-grams|

  Source: distinct-n of "A Diversity-Promoting Objective Function for Neural Conversation Models" (Li et al., arXiv
  1510.03055), of one response. It falls with length, so compare responses of similar lengths.
  """

  def __init__(self, *, n: int = 3):
    """Stores n, the words of an n-gram."""
    if n < 1:
      raise InputError(f"repetition n={n}: it must be at least 1")
    self._n = n
    self.__name__ = f"repetition({n})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion: 1.0 if it is shorter than n words, None if it is not text."""
    del prompts, columns
    return [None if text is None else self._score(text) for text in texts.texts_of(completions)]

  def _score(self, text: str) -> float:
    grams = ngrams(texts.words_of(text[:_MAX_CHARS]), self._n)
    return len(set(grams)) / len(grams) if grams else 1.0


class CompressionReward:
  """1.0 while a response compresses like prose, falling to 0.0 if it compresses too well or hardly at all.

      ratio = bytes of deflate's output / bytes of the text
      score = 1 within [low, high + 3.5 / sqrt(bytes)], linear to 0 at `slack` outside

  Below `low` the text repeats itself. Above the band it is close to random characters, as a policy writes if entropy is
  rewarded without a quality floor. Short texts compress less, hence the root; texts below `min_chars` cannot be told
  apart and score 1.0. Deflate starts from a dictionary of common English words. The defaults fit English: in film
  reviews cut at 80 to 2,000 characters, 99 % lie within the band. Random letters leave it at about 500 characters,
  random printable characters at 80. Random words of a real vocabulary hardly leave it at any length, so they need a
  reward of quality.
  """

  def __init__(self, *, low: float = 0.2, high: float = 0.465, slack: float = 0.1, min_chars: int = 80):
    """Stores the band.

    Args:
      low: least ratio of full score, in [0, high].
      high: greatest ratio of full score of a very long text.
      slack: distance outside the band at which the score reaches 0.
      min_chars: shorter texts are not judged.
    """
    if not 0 <= low <= high or slack <= 0 or min_chars < 0:
      raise InputError(f"compression band [{low}, {high}], slack {slack}: needs 0 <= low <= high and slack > 0")
    self._low, self._high, self._slack, self._min_chars = low, high, slack, min_chars
    self.__name__ = "compression"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None if it is not text."""
    del prompts, columns
    return [None if text is None else self._score(text) for text in texts.texts_of(completions)]

  def _score(self, text: str) -> float:
    if len(text) < max(self._min_chars, 1):
      return 1.0
    ratio = compression_ratio(text)
    high = self._high + _SHORT_TEXT / math.sqrt(min(len(text.encode("utf-8", "replace")), _MAX_CHARS))
    outside = max(self._low - ratio, ratio - high, 0.0)
    return max(0.0, 1.0 - outside / self._slack)


_SHORT_TEXT = 3.5  # Measured on reviews: excess ratio of a short text over a long one's, times sqrt(bytes).
_COMMON = (
  "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which "
  "one you were all her she there would their we him been has when who will no more if out so up said what its about "
  "than into them can only other time new some could these two may first then do any like my now over such our man "
  "me even most made after also did many off before must well back through years where much your way down should "
  "because each just those people how too little state good very make world still see own work men day get here "
  "between both life being under never same another know while last might us great old year go come since against"
)
_EMPTY_BYTES = 2  # Output of raw deflate without input.


def compression_ratio(text: str) -> float:
  """Bytes of raw deflate's output by bytes of the text (UTF-8, at most the first 100,000 characters); 1.0 for none."""
  data = text[:_MAX_CHARS].encode("utf-8", "replace")
  if not data:
    return 1.0
  squeeze = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _COMMON.encode())
  return (len(squeeze.compress(data) + squeeze.flush()) - _EMPTY_BYTES) / len(data)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
  """N-grams of a sequence, in order, with repeats."""
  return list(zip(*(words[start:] for start in range(n))))
