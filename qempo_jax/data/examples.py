"""Examples, the parsed form of data rows: a prompt with its columns, and the responses to it, each part checked.

Fields are read by allow-lists. An unsupported field that a chat template could read (tool calls, thoughts, images) is
refused by name, since the row would change its meaning without it.
"""

from collections.abc import Sequence
import math
import re
from typing import Any
from typing import NamedTuple

from qempo_jax.data import files

Row = dict[str, Any]

# Role of each role name; ShareGPT has human and gpt, newer APIs have developer for system.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
# Other fields of a message, which no chat template reads.
HARMLESS_FIELDS = ("id", "language", "model", "timestamp", "turn_identifier")
# Characters; a longer text is a file read by mistake.
MAX_CHARACTERS = 2_000_000


class RowError(ValueError):
  """The fault of a row, as the continuation of the row's name: 'has no "prompt"'."""


class Message(dict):
  """One message of a conversation, {"role", "content"}; hashable, so that a conversation can name a prompt."""

  def __hash__(self):
    return hash(tuple(sorted(self.items())))


class OneMessage(str):
  """The text of a conversation of one user message: as good as the text, but reward functions get it as messages."""

  __slots__ = ()


# Messages as JSON, or as the text of a Python list.
_LIKE_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
_NAMES_A_ROLE = re.compile(r"""["'](?:role|from)["']\s*:""")

Prompt = str | tuple[Message, ...]
Response = str | tuple[int, ...]


class Preference(NamedTuple):
  """One pair, or the part of a pair in the data.

  Attributes:
    row: `prompt` (a user's message, or a conversation) and the other columns.
    chosen: the preferred response: its text, or its token ids with the end token; None for a prompt alone.
    rejected: the other response; None without one, which suffices for NLL.
  """

  row: Row
  chosen: Response | None
  rejected: Response | None


class Scored(NamedTuple):
  """A prompt with several responses, each with a score.

  Attributes:
    row: as in `Preference`.
    responses: one or more.
    scores: one per response; larger is better.
    answers: the answer of each response, or None if unknown; responses with the same answer are duplicates.
  """

  row: Row
  responses: tuple[Response, ...]
  scores: tuple[float, ...]
  answers: tuple[str | None, ...]


def text(value: Any, name: str) -> str:
  """Checks that a value is a non-blank text that can be written as UTF-8, and returns it."""
  if not isinstance(value, str):
    raise RowError(f'has a "{name}" that is {_kind(value)}, not a text')
  if not value.strip():
    raise RowError(f'has an empty "{name}"')
  if len(value) > MAX_CHARACTERS:
    raise RowError(f'has a "{name}" of {len(value):,} characters, more than {MAX_CHARACTERS:,}')
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise RowError(f'has a "{name}" with half a character (a lone surrogate) at place {error.start}') from error
  return value


def decoded(value: Any) -> Any:
  """A value as it is, or the messages of a text that is their JSON, as parquet files keep messages of differing fields."""
  if not isinstance(value, str) or not _LIKE_MESSAGES.match(value):
    return value
  try:
    found = files.parse(value)
  except (ValueError, RecursionError) as error:
    if not _NAMES_A_ROLE.search(value):
      return value
    raise RowError("holds a text that looks like messages and is not JSON; write the messages as JSON") from error
  return found if all(isinstance(message, dict) and _keys(message) for message in found) else value


def messages(value: Any, name: str) -> tuple[Message, ...]:
  """Messages with a known role and a text each; a system message comes first or not at all.

  Args:
    value: a list of {"role", "content"} or, as in ShareGPT, {"from", "value"}; a content is a text or a list of text
      parts, which are joined.
    name: of the field, for errors.

  Raises:
    RowError: a role is unknown, a text is empty, or a message has a field that is not built here.
  """
  if not isinstance(value, list | tuple) or not value:
    raise RowError(f'has a "{name}" that is {_kind(value)}, not a list of messages')
  found = []
  for place, message in enumerate(value):
    keys = _keys(message) if isinstance(message, dict) else None
    if keys is None:
      raise RowError(f'has a "{name}" whose message {place + 1} is no object with role and content')
    role = ROLES.get(message[keys[0]]) if isinstance(message[keys[0]], str) else None
    if role is None:
      known = "system, user, assistant"
      raise RowError(f'has a "{name}" with the role {str(message[keys[0]])[:40]!r}, which is none of {known}')
    if role == "system" and place:
      raise RowError(f'has a "{name}" with a system message that is not the first message')
    where = f"{name}, message {place + 1}"
    _refuse_further(message, (*keys, *HARMLESS_FIELDS), where)
    found.append(Message(role=role, content=text(_joined(message[keys[1]], where), where)))
  return tuple(found)


def is_empty(value: Any) -> bool:
  """True if a field is null, or an empty list, object or text."""
  return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _keys(message) -> tuple[str, str] | None:
  return next((keys for keys in (("role", "content"), ("from", "value")) if set(keys) <= message.keys()), None)


def _refuse_further(fields, known, where) -> None:
  for field, value in fields.items():
    if field not in known and not is_empty(value):
      raise RowError(
        f'has a "{where}" with the field {str(field)[:40]!r}, which is not built here; remove it or the row'
      )


def _joined(content, where) -> Any:
  """The text of a list of text parts; anything else as it is."""
  if not isinstance(content, list) or not content:
    return content
  parts = []
  for part in content:
    part = {"type": "text", "text": part} if isinstance(part, str) else part
    if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
      kind = str(part.get("type"))[:40] if isinstance(part, dict) else _kind(part)
      raise RowError(f'has a "{where}" with a content part of the type {kind!r}; only texts are built here')
    _refuse_further(part, ("type", "text"), where)
    parts.append(part["text"])
  return "".join(parts)


def prompt(value: Any) -> Prompt:
  """A text, or a conversation that ends with the user; a single message is as good as its text."""
  if isinstance(value, str):
    return text(value, "prompt")
  return conversation(messages(value, "prompt"))


def conversation(found: Sequence[Message]) -> Prompt:
  """The same from messages already read."""
  if not found or found[-1]["role"] != "user":
    raise RowError("has a prompt that does not end with a user's message")
  return OneMessage(found[0]["content"]) if len(found) == 1 else tuple(found)


def response(value: Any, name: str) -> Response:
  """A text, one assistant message (alone or in a list), or token ids, which are taken as they are."""
  if isinstance(value, list) and value and all(type(token) is int and 0 <= token < 2**31 for token in value):
    return tuple(value)
  if isinstance(value, str):
    return text(value, name)
  found = messages([value] if isinstance(value, dict) else value, name)
  if len(found) != 1 or found[0]["role"] != "assistant":
    raise RowError(f'has a "{name}" that is not one assistant message')
  return found[0]["content"]


def number(value: Any, name: str) -> float:
  """A finite number; true and false count as 1 and 0."""
  if not isinstance(value, bool | int | float) or not math.isfinite(value):
    raise RowError(f'has a "{name}" of {str(value)[:40]!r}, which is not a finite number')
  return float(value)


def is_messages(value: Any) -> bool:
  """True if a value has the form of messages."""
  return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def _kind(value: Any) -> str:
  names = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", dict: "an object"}
  if isinstance(value, list | tuple):
    return "a list" if value else "an empty list"
  return names.get(type(value), type(value).__name__) if not isinstance(value, str) else "a text"
