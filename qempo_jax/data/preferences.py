"""Preference pairs as text: from a JSON Lines file, from the open-list answer sets, from scored samples, or mixed."""

from collections.abc import Sequence
import gzip
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from qempo_jax.data.prompts import Row
from qempo_jax.errors import InputError
from qempo_jax.rewards import open_list


class Message(dict):
  """One message of a conversation, {"role", "content"}; hashable, so that a conversation can name a prompt."""

  def __hash__(self):
    return hash(tuple(sorted(self.items())))


Prompt = str | tuple[Message, ...]
Response = str | tuple[int, ...]


class Preference(NamedTuple):
  """One pair.

  Attributes:
    row: `prompt` (a user's message, or a conversation) and the further columns.
    chosen: the preferred response: its text, or its token ids with the ending token.
    rejected: the other one; None where there is none, which serves NLL alone.
  """

  row: Row
  chosen: Response
  rejected: Response | None


def jsonl_preferences(path: str | pathlib.Path, *, rejected: bool) -> list[Preference]:
  """Reads pairs with explicit prompts: {"prompt", "chosen", "rejected", ...}.

  A prompt is a string (one user message, or plain text for a model without a chat template) or a list of messages
  that ends with the user's. A response is a string, a list with one assistant message, or a list of token ids, taken
  as they are. Without "rejected", "completion" may stand for "chosen".

  Args:
    path: a .jsonl file, or a .jsonl.gz one.
    rejected: whether every row must have a rejected response.

  Returns:
    The pairs, in the file's order; further fields are columns of the row.

  Raises:
    InputError: the file can't be read, or a line is not such an object; names the line.
  """
  found = []
  for number, line in enumerate(_lines(path), start=1):
    if not line.strip():
      continue
    where = f"{path}, line {number}"
    try:
      entry = json.loads(line)
    except json.JSONDecodeError as error:
      raise InputError(f"{where} is not JSON ({error.msg}); each line must be one object") from error
    if not isinstance(entry, dict):
      raise InputError(f"{where} is not an object; each line must hold prompt, chosen and rejected")
    found.append(_preference(entry, where, rejected))
  if not found:
    raise InputError(f"{path} holds no rows")
  return found


def open_list_preferences(rows: Sequence[Row], *, per_prompt: int, seed: int) -> list[Preference]:
  """Pairs made of the answer sets: an acceptable item is preferred to an item of another set.

  Items are drawn uniformly, so that under a smoothed label the loss's optimum is uniform over the acceptable ones.

  Args:
    rows: open-list rows, with `set_name`.
    per_prompt: pairs a prompt.
    seed: of the draws.

  Returns:
    The pairs, prompt by prompt.
  """
  rng = np.random.default_rng(seed)
  found = []
  for row in rows:
    own = open_list.answer_set(row["set_name"])
    others = [item for name in open_list.SETS if name != row["set_name"] for item in open_list.SETS[name].items]
    wrong = [item for item in others if open_list.parse_answer(item, row["set_name"]) is None]
    for good, bad in zip(rng.integers(len(own.items), size=per_prompt), rng.integers(len(wrong), size=per_prompt)):
      found.append(Preference(row, own.items[good], wrong[bad]))
  return found


def sampled_preferences(
    row: Row, responses: Sequence[Sequence[int]], rewards: Sequence[float], *, most: int
) -> list[Preference]:
  """Pairs made of one prompt's scored samples: the best with the worst, the second best with the second worst, ...

  Args:
    row: the prompt with its columns.
    responses: token ids, the ending token included.
    rewards: one a response.
    most: pairs at most.

  Returns:
    The pairs whose rewards differ; none where all rewards are equal.
  """
  order = np.argsort(-np.asarray(rewards), kind="stable")
  ids = [tuple(int(token) for token in response) for response in responses]
  return [
      Preference(row, ids[best], ids[worst])
      for best, worst in list(zip(order, order[::-1]))[: min(most, len(ids) // 2)]
      if rewards[best] > rewards[worst]
  ]


def answers_against_samples(
    row: Row, responses: Sequence[Sequence[int]], rewards: Sequence[float], *, per_prompt: int, seed: Sequence[int]
) -> list[Preference]:
  """Pairs of an acceptable item, drawn uniformly from the row's answer set, with a bad sample of one prompt.

  The rejected side lies where the policy's probability is. A pair says nothing about responses that are in no pair:
  between two bare items it leaves the sentences that a model would rather write as likely as they were.

  Args:
    row: an open-list row, with `set_name`.
    responses: token ids of the samples, the ending token included.
    rewards: one a response; below 1 is bad.
    per_prompt: pairs.
    seed: of the draws.

  Returns:
    The pairs; none where every sample is good.
  """
  rng = np.random.default_rng(seed)
  items = open_list.answer_set(row["set_name"]).items
  bad = [tuple(int(token) for token in ids) for ids, reward in zip(responses, rewards) if reward < 1]
  if not bad:
    return []
  draws = zip(rng.integers(len(items), size=per_prompt), rng.integers(len(bad), size=per_prompt))
  return [Preference(row, items[good], bad[wrong]) for good, wrong in draws]


def to_json(preference: Preference) -> dict[str, Any]:
  """The object that `jsonl_preferences` reads back as this pair."""
  pair = {"chosen": preference.chosen, "rejected": preference.rejected}
  return preference.row | {name: value for name, value in pair.items() if value is not None}


def prompt_rows(rows: Sequence[Row]) -> list[Row]:
  """The first row of every prompt, in order."""
  first = {}
  for row in rows:
    first.setdefault(row["prompt"], row)
  return list(first.values())


def _lines(path):
  path = pathlib.Path(path).expanduser()
  try:
    if path.suffix == ".gz":
      with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return list(file)
    with open(path, encoding="utf-8", newline="\n") as file:
      return list(file)
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise InputError(f"data file {path} cannot be read ({error})") from error


def _preference(entry, where, needs_rejected) -> Preference:
  chosen = "chosen" if needs_rejected or "chosen" in entry else "completion"
  needed = ("prompt", chosen) + (("rejected",) if needs_rejected else ())
  for name in needed:
    if name not in entry:
      raise InputError(
          f'{where} has no "{name}"; each line must hold {", ".join(needed)} (the prompt apart from the responses)'
      )
  row = {name: value for name, value in entry.items() if name not in ("chosen", "rejected", "completion")}
  row = {"split": "train"} | row | {"prompt": _prompt(entry["prompt"], where)}
  rejected = _response(entry["rejected"], where, "rejected") if "rejected" in entry else None
  return Preference(row, _response(entry[chosen], where, chosen), rejected)


def _prompt(value, where) -> Prompt:
  if isinstance(value, str) and value:
    return value
  if _is_messages(value) and value[-1]["role"] == "user":
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in value)
    return messages[0]["content"] if len(messages) == 1 else messages
  raise InputError(f'{where}: "prompt" must be a text, or messages with role and content that end with the user\'s')


def _response(value, where, name) -> Response:
  if isinstance(value, str) and value:
    return value
  if isinstance(value, list) and value and all(type(token) is int and token >= 0 for token in value):
    return tuple(value)
  if _is_messages(value) and len(value) == 1 and value[0]["role"] == "assistant" and value[0]["content"]:
    return value[0]["content"]
  raise InputError(f'{where}: "{name}" must be a text, one assistant message or token ids, and not empty')


def _is_messages(value) -> bool:
  return isinstance(value, list) and bool(value) and all(
      isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
  )
