"""Rewards of form: a pattern that the whole response must match, and tags in their order."""

from collections.abc import Sequence
import re
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.rewards import texts

_MAX_CHARS = 100_000  # a longer response does not match: a pattern's time may grow faster than the text


class FormatReward:
  """1.0 for a response that matches a pattern from its first character to its last, else 0.0.

  The pattern is the user's own and is trusted: one such as `(a+)+b` can take very long on a text that almost matches.
  """

  def __init__(self, pattern: str):
    """Compiles the pattern.

    Args:
      pattern: a regular expression of Python's; `.` also matches line breaks.

    Raises:
      InputError: it is none.
    """
    try:
      self._pattern = re.compile(pattern, re.DOTALL)
    except re.error as error:
      raise InputError(f"{pattern!r} is no regular expression ({error}); correct it") from error
    self.__name__ = f"format({pattern!r:.40})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None for what is not text."""
    del prompts, columns
    return [None if text is None else float(self._matches(text)) for text in texts.texts_of(completions)]

  def _matches(self, text: str) -> bool:
    return len(text) <= _MAX_CHARS and self._pattern.fullmatch(text) is not None


class TagsReward:
  """The share of the required tags that a response has right, 1.0 only where it is nothing but them.

  A tag is right where `<tag>` and `</tag>` each occur once, in that order, and after the tag before it. With `strict`
  the score is 1.0 where all are right, not empty, and only blanks stand around them, else 0.0.
  """

  def __init__(self, *, tags: Sequence[str] = ("think", "answer"), strict: bool = True):
    """Keeps the names.

    Args:
      tags: names in the order they must come in.
      strict: all or nothing.

    Raises:
      InputError: no tags, or one that is no plain word.
    """
    self._tags = (tags,) if isinstance(tags, str) else tuple(tags)
    wrong = [tag for tag in self._tags if not re.fullmatch(r"\w+", str(tag))]
    if not self._tags or wrong:
      raise InputError(f"tags={tags!r}: give one or more plain words, such as ('think', 'answer')")
    self._strict = strict
    self.__name__ = f"tags({', '.join(self._tags)})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One score a completion; None for what is not text."""
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
