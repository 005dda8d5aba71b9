"""What one row of data becomes: a prompt with its columns, and the responses to it, each part checked as it is read."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

Row = dict[str, Any]

ROLES = ("system", "user", "assistant")
# Characters; a text beyond it is a file read by mistake rather than something to train on.
MAX_CHARACTERS = 2_000_000


class RowError(ValueError):
  """Why a row can't be used, as what follows the row's name: 'has no "prompt"'."""


class Message(dict):
  """One message of a conversation, {"role", "content"}; hashable, so that a conversation can name a prompt."""

  def __hash__(self):
    return hash(tuple(sorted(self.items())))


Prompt = str | tuple[Message, ...]
Response = str | tuple[int, ...]


class Preference(NamedTuple):
  """One pair, or as much of one as the data has.

  Attributes:
    row: `prompt` (a user's message, or a conversation) and the further columns.
    chosen: the preferred response: its text, or its token ids with the ending token; None for a prompt alone.
    rejected: the other one; None where there is none, which serves NLL alone.
  """

  row: Row
  chosen: Response | None
  rejected: Response | None


def text(value: Any, name: str) -> str:
  """A text that is not blank and can be written as UTF-8."""
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


def messages(value: Any, name: str) -> tuple[Message, ...]:
  """Messages with a known role and a content each; a system message comes first or not at all."""
  if not isinstance(value, list | tuple) or not value:
    raise RowError(f'has a "{name}" that is {_kind(value)}, not a list of messages')
  found = []
  for place, message in enumerate(value):
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
      raise RowError(f'has a "{name}" whose message {place + 1} is no object with role and content')
    role = message["role"]
    if role not in ROLES:
      raise RowError(f'has a "{name}" with the role {str(role)[:40]!r}, which is none of {", ".join(ROLES)}')
    if role == "system" and place:
      raise RowError(f'has a "{name}" with a system message that is not the first message')
    found.append(Message(role=role, content=text(message["content"], f"{name}, message {place + 1}")))
  return tuple(found)


def prompt(value: Any) -> Prompt:
  """A text, or a conversation that ends with the user; a single message is as good as its text."""
  if isinstance(value, str):
    return text(value, "prompt")
  return conversation(messages(value, "prompt"))


def conversation(found: Sequence[Message]) -> Prompt:
  """The same from messages already read."""
  if not found or found[-1]["role"] != "user":
    raise RowError("has a prompt that does not end with a user's message")
  return found[0]["content"] if len(found) == 1 else tuple(found)


def response(value: Any, name: str) -> Response:
  """A text, one assistant message, or token ids, which are taken as they are."""
  if isinstance(value, list) and value and all(type(token) is int and 0 <= token < 2**31 for token in value):
    return tuple(value)
  if isinstance(value, str):
    return text(value, name)
  found = messages(value, name)
  if len(found) != 1 or found[0]["role"] != "assistant":
    raise RowError(f'has a "{name}" that is not one assistant message')
  return found[0]["content"]


def is_messages(value: Any) -> bool:
  """Whether a value is meant as messages."""
  return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def _kind(value: Any) -> str:
  names = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", dict: "an object"}
  if isinstance(value, list | tuple):
    return "a list" if value else "an empty list"
  return names.get(type(value), type(value).__name__) if not isinstance(value, str) else "a text"
