"""Format rewards: a pattern that the whole response must match, and tags in order."""

from collections.abc import Sequence
import re
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.rewards import texts

_MAX_CHARS = 100_000  # A longer response does not match: a pattern's time may grow faster than the text.


class FormatReward:
  """1.0 for a response that matches a pattern from its first character to its last, else 0.0.

  The pattern is the user's own and is trusted: one such as `(a+)+b` can take very long on a text that almost matches.
  """

  def __init__(self, pattern: str):
    """Compiles the pattern.

    Args:
      pattern: a Python regular expression; `.` also matches line breaks.

    Raises:
      InputError: the pattern is not a regular expression.
    """
    try:
      self._pattern = re.compile(pattern, re.DOTALL)
    except re.error as error:
      raise InputError(f"{pattern!r} is not a regular expression ({error}); correct it") from error
    self.__name__ = f"format({pattern!r:.40})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None if it is not text."""
    del prompts, columns
    return [None if text is None else float(self._matches(text)) for text in texts.texts_of(completions)]

  def _matches(self, text: str) -> bool:
    return len(text) <= _MAX_CHARS and self._pattern.fullmatch(text) is not None


class TagsReward:
  """Share of the required tags that are correct in a response.

  A tag is correct if `<tag>` and `</tag>` each occur once, in that order, after the previous tag, and are not empty.
  With `strict` the score is 1.0 if all are correct and only blanks are around them, else 0.0.
  """

  def __init__(self, *, tags: Sequence[str] = ("think", "answer"), strict: bool = True):
    """Stores the names.

    Args:
      tags: names in their required order.
      strict: score 1.0 or 0.0 alone.

    Raises:
      InputError: there are no tags, or one is not a plain word.
    """
    self._tags = (tags,) if isinstance(tags, str) else tuple(tags)
    wrong = [tag for tag in self._tags if not re.fullmatch(r"\w+", str(tag))]
    if not self._tags or wrong:
      raise InputError(f"tags={tags!r}: give one or more plain words, such as ('think', 'answer')")
    self._strict = strict
    self.__name__ = f"tags({', '.join(self._tags)})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None if it is not text."""
    del prompts, columns
    return [None if text is None else self._score(text) for text in texts.texts_of(completions)]

  def _score(self, text: str) -> float:
    end, right, outside = 0, 0, ""
    for tag in self._tags:
      opening, closing = f"<{tag}>", f"</{tag}>"
      first, last = text.find(opening), text.find(closing)
      once = text.count(opening) == text.count(closing) == 1
      if once and end <= first < last and text[first + len(opening) : last].strip():
        outside += text[end:first]
        end = last + len(closing)
        right += 1
    whole = right == len(self._tags) and not (outside + text[end:]).strip()
    return float(whole) if self._strict else right / len(self._tags)
