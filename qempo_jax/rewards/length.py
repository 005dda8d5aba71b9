"""Length rewards, in words, characters or tokens: near a target, or within a range with soft ends."""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.rewards import texts
from qempo_jax.rewards import words

_COUNTERS = {"words": lambda text: len(words.by_blanks(text)), "characters": len}


class LengthReward:
  """1.0 within a range of lengths, falling linearly to 0.0 outside it.

      score = clip(1 - max(low - n, n - high, 0) / slack, 0, 1)

  A bound of None does not bind; slack 0 makes the ends hard. With `target` both bounds are the target.
  """

  def __init__(
    self,
    *,
    target: float | None = None,
    low: float | None = None,
    high: float | None = None,
    slack: float = 0.0,
    unit: str = "words",
    tokenizer: str | Callable[[str], Sequence] | None = None,
  ):
    """Stores the range.

    Args:
      target: the only length of full score, instead of low and high.
      low: shortest length of full score.
      high: longest length of full score.
      slack: distance outside the range at which the score reaches 0.
      unit: "words", "characters" or "tokens".
      tokenizer: for tokens: a function from text to token ids, or a model's name or folder.

    Raises:
      InputError: the range is empty, the unit is unknown, or tokens have no tokenizer.
    """
    if target is not None:
      if low is not None or high is not None:
        raise InputError("give length either a target or low and high, not both")
      low = high = target
    if low is None and high is None:
      raise InputError("length needs a target, or low, or high")
    self._low = -math.inf if low is None else float(low)
    self._high = math.inf if high is None else float(high)
    if not self._low <= self._high or not 0 <= slack < math.inf:
      raise InputError(f"length range [{low}, {high}], slack {slack}: low must not exceed high, nor slack be negative")
    if unit not in (*_COUNTERS, "tokens"):
      raise InputError(f"length unit {unit!r}: use one of {', '.join(_COUNTERS)}, tokens")
    if unit == "tokens" and tokenizer is None:
      raise InputError("length in tokens needs tokenizer=..., a function from text to ids or a model's name")
    self._slack, self._tokenizer = slack, tokenizer
    self._count = _COUNTERS.get(unit, self._tokens)
    self.__name__ = f"length({unit})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """Scores each completion; `completion_ids` from the caller are counted instead of tokenising again.

    Returns:
      One score a completion; None if it is not text.
    """
    del prompts
    ids = columns.get("completion_ids") if self._count == self._tokens else None
    read = texts.texts_of(completions)
    if ids is not None:
      return [None if text is None else self._score(len(row)) for text, row in zip(read, ids, strict=True)]
    return [None if text is None else self._score(self._count(text)) for text in read]

  def _score(self, count: int) -> float:
    outside = max(self._low - count, count - self._high, 0.0)
    if outside == 0 or self._slack == 0:
      return float(outside == 0)
    return max(0.0, 1.0 - outside / self._slack)

  def _tokens(self, text: str) -> int:
    if isinstance(self._tokenizer, str):
      from qempo_jax.data import tokenization

      loaded = tokenization.load_tokenizer(self._tokenizer)
      self._tokenizer = lambda text: loaded.encode(text, add_special_tokens=False)
    return len(self._tokenizer(text.encode("utf-8", "replace").decode("utf-8")))
