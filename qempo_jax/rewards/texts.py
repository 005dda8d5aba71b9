"""Texts of completions, which reward functions may get as texts, as lists of messages, or in no valid form."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.rewards import words


def text_of(completion: Any) -> str | None:
  """Text of a completion.

  Args:
    completion: a string, or messages `[{"role": ..., "content": ...}]`, whose contents are joined by line breaks; a
      content may be a list of parts, of which those with a "text" count.

  Returns:
    The text; None for anything else, which no reward can score.
  """
  if isinstance(completion, str):
    return completion
  if isinstance(completion, Mapping):
    completion = [completion]
  if not isinstance(completion, Sequence) or isinstance(completion, (bytes, bytearray)):
    return None
  if not completion:
    return None
  contents = [_content(message) for message in completion]
  return None if None in contents else "\n".join(contents)


def texts_of(completions: Sequence[Any]) -> list[str | None]:
  """Text of each completion; None if it has none."""
  return [text_of(completion) for completion in completions]


def words_of(text: str) -> list[str]:
  """Words of a text in lower case: separated by blanks, or single characters in scripts without blanks."""
  return words.by_blanks(text.casefold())


def column(name: str, columns: Mapping[str, Sequence[Any]], completions: Sequence[Any]) -> Sequence[Any]:
  """A column that a reward needs; raises InputError if the data has no such column, or one of another length."""
  if name not in columns or columns[name] is None:
    others = ", ".join(sorted(columns)) or "none"
    raise InputError(f"the reward needs a column {name!r} in every row; the data's further columns are: {others}")
  if len(columns[name]) != len(completions):
    raise InputError(f"column {name!r} has {len(columns[name])} values for {len(completions)} completions")
  return columns[name]


def _content(message: Any) -> str | None:
  content = message.get("content") if isinstance(message, Mapping) else None
  if isinstance(content, str):
    return content
  if isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    parts = [part for part in parts if isinstance(part, str)]
    return "\n".join(parts) if parts else None
  return None
