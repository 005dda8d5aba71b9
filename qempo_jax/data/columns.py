"""Columns besides prompt and responses that change a row's meaning: each is read, or refused by name.

system, system_prompt                                   the conversation's first message
question, query, problem, instruction (with input)      the prompt, if there is no other
label, kto_tag                                          whether a completion is worth imitating
chat_template_kwargs                                    variables of the chat template
tools, images, chat_template, ...                       refused: not supported
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import json
import math
from typing import Any

from qempo_jax.data import examples
from qempo_jax.data.examples import Message
from qempo_jax.data.examples import Prompt
from qempo_jax.data.examples import RowError

SYSTEM = ("system", "system_prompt")
QUESTIONS = ("question", "query", "problem", "instruction")
# Texts that belong to the prompt; a separate prompt must contain them.
PROMPT_PARTS = (*QUESTIONS, "input", "context", "history")
# Labels of a completion: true or 1 is good, false or 0 is bad.
LABELS = ("label", "kto_tag")
UNBUILT = (
    "tools", "functions", "documents", "images", "image", "videos", "video", "audios", "audio", "chat_template",
)  # fmt: skip
# Columns that determine the right answer: rows with one prompt but different values here are different tasks.
TASKS = (
    "task", "task_id", "answer", "answers", "target", "solution", "solutions", "reference", "references",
    "reference_answer", "ground_truth", "gold", "expected", "expected_answer", "correct_answer", "label", "labels",
    "choices", "options", "context", "constraint", "constraints", "test", "tests", "test_cases", "reward_model",
    "extra_info", "verification_info", "chat_template_kwargs",
)  # fmt: skip

# Column pairs with the scores of two responses; the first pair with numbers counts.
SCORES = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"), ("chosen-rating", "rejected-rating"), ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
)  # fmt: skip

# Columns with the score of a single response, and the column with a row's weight in an offline loss.
SINGLE_SCORES = ("score", "reward", *LABELS)
WEIGHT = "weight"

Entry = Mapping[str, Any]


def refuse_unbuilt(entry: Entry) -> None:
  """Raises RowError if a column that a chat template would read is filled."""
  for name in UNBUILT:
    if not examples.is_empty(entry.get(name)):
      raise RowError(f'has "{name}", which is not built here; without it the row would mean something else: remove it')


def question(entry: Entry) -> str | None:
  """Returns the prompt of a row with its question in a column of that name; None without such a column.

  Alpaca's "input" follows its "instruction" on a new line.
  """
  there = [name for name in QUESTIONS if _filled(entry, name)]
  if len(there) > 1:
    raise RowError(f'has both "{there[0]}" and "{there[1]}"; name the one that is the prompt "prompt"')
  parts = [*there, "input"] if there in (["instruction"], []) and _filled(entry, "input") else there
  return "\n".join(examples.text(entry[name], name) for name in parts) if parts else None


def with_system(prompt: Prompt, entry: Entry) -> Prompt:
  """Returns the prompt after the row's system message, if a column has one."""
  there = [name for name in SYSTEM if _filled(entry, name)]
  if not there:
    return prompt
  system = examples.text(entry[there[0]], there[0])
  turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
  if turns[0]["role"] == "system":
    if turns[0]["content"].strip() != system.strip():
      raise RowError(f'has a "{there[0]}" other than the system message of its conversation')
    return prompt
  return (Message(role="system", content=system), *turns)


def refuse_unread(prompt: Prompt, entry: Entry) -> None:
  """Raises RowError if a column that belongs to the prompt has a text that the prompt does not contain."""
  whole = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
  for name in PROMPT_PARTS:
    value = entry.get(name)
    if examples.is_empty(value) or (isinstance(value, str) and value.strip() in whole):
      continue
    raise RowError(
      f'has a "{name}" that its prompt does not hold; put it into the prompt, or give the column another name'
    )


def refuse_bad(entry: Entry) -> None:
  """Raises RowError if an unpaired completion is labelled as bad, or has an invalid label."""
  for name in LABELS:
    value = entry.get(name)
    if value is None:
      continue
    if not isinstance(value, bool | int | float) or value not in (0, 1):
      raise RowError(f'has a "{name}" of {str(value)[:40]!r}; a completion\'s label is true or 1, false or 0')
    if not value:
      raise RowError(f"is an unpaired completion labelled {str(value).lower()}, which is nothing to imitate")


def task(row: Entry) -> str:
  """The task columns of a row as one short text, "answer=2"; empty if it has none."""
  return _listed({name: row[name] for name in TASKS if not examples.is_empty(row.get(name))})


def whole_task(row: Entry) -> str:
  """All of a row's columns but its split as one short text, which distinguishes the rows of a data source."""
  first = [name for name in TASKS if name in row]
  return _short(_listed({name: row[name] for name in dict.fromkeys([*first, *row]) if name not in ("prompt", "split")}))


def _listed(found) -> str:
  return ", ".join(f"{name}={_short(value)}" for name, value in found.items())


def tell_apart(prompts: Sequence[Any], tasks: Sequence[str]) -> list[str]:
  """For each row its task if its prompt occurs in several tasks, else an empty text."""
  several: dict[Any, set[str]] = {}
  for prompt, name in zip(prompts, tasks, strict=True):
    several.setdefault(prompt, set()).add(name)
  return [name if len(several[prompt]) > 1 else "" for prompt, name in zip(prompts, tasks, strict=True)]


def whole_row(row: Entry) -> str:
  """A row's prompt and columns as one text, equal for equal rows; identifies the task of a row without task columns."""
  return json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)


def _short(value) -> str:
  """A value in at most 100 characters, different for different values."""
  text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
  return (
    text
    if len(text) <= 100
    else f"{text[:80]}... {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
  )


def pair_scores(row: Entry) -> tuple[float, float] | None:
  """The scores of the chosen and the rejected response, by the columns of SCORES; None if no two are numbers."""
  for names in SCORES:
    chosen, rejected = (_as_number(row.get(name)) for name in names)
    if math.isfinite(chosen) and math.isfinite(rejected):
      return chosen, rejected
  return None


def score_gap(row: Entry) -> float | None:
  """The chosen response's score minus the rejected one's; None if they are unknown."""
  found = pair_scores(row)
  return None if found is None else found[0] - found[1]


def single_score(row: Entry) -> float:
  """The score of an unpaired response, by the first of SINGLE_SCORES that is a number; 1 without one."""
  numbers = (
    float(row[name]) if isinstance(row.get(name), bool) else _as_number(row.get(name)) for name in SINGLE_SCORES
  )
  return next((value for value in numbers if math.isfinite(value)), 1.0)


def weight(row: Entry) -> float:
  """A row's weight in the loss, by the column WEIGHT; 1 without one.

  Raises:
    RowError: it is not a finite number, or below 0.
  """
  value = row.get(WEIGHT)
  found = 1.0 if value is None else examples.number(value, WEIGHT)
  if found < 0:
    raise RowError(f'has a "{WEIGHT}" of {found:g}; a row counts at least 0 times')
  return found


def _as_number(value) -> float:
  """Converts a number, or its text, to float; NaN for anything else."""
  try:
    return math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def _filled(entry, name) -> bool:
  value = entry.get(name)
  return not examples.is_empty(value) and not (isinstance(value, str) and not value.strip())


def fingerprint(rows) -> str:
  """SHA-256 over rows of JSON-able columns, as over one JSON list of them, of which one row is in memory at a time."""
  digest = hashlib.sha256()
  for text in json_list(json.dumps(row, sort_keys=True, default=str) for row in rows):
    digest.update(text.encode())
  return digest.hexdigest()


def json_list(items: Iterable[str]) -> Iterator[str]:
  """Yields the parts of the JSON list of these JSON texts."""
  yield "["
  for place, text in enumerate(items):
    yield f", {text}" if place else text
  yield "]"
