"""The shapes that people's rows come in, told apart by their keys, and read into one: prompt, chosen, rejected.

Preference data has TRL's four forms (the prompt apart or inside the responses; plain texts or messages), UltraFeedback's
binarized one, ShareGPT's, questions with two answers, and Anthropic's HH transcripts. Scored responses are a prompt with lists of
"responses" and "scores", and may have "response_answers". Further: prompts with a completion, whole conversations, prompts alone, Alpaca's instructions, GSM8K, MATH, benchmark questions in turns, and plain texts. What
else changes a row's meaning is in `columns`.
"""

from collections.abc import Callable
from typing import Any

from qempo_jax.data import columns
from qempo_jax.data import examples
from qempo_jax.data import readers
from qempo_jax.data import templates
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import RowError
from qempo_jax.data.examples import Scored

Entry = dict[str, Any]

# Requirements of a run on every row.
PROMPT, COMPLETION, PAIR, SCORED = "prompt", "completion", "pair", "scored"
ULTRAFEEDBACK, SCORES = "UltraFeedback binarized", "scored responses"

# Fields that hold messages, which may be kept as JSON text.
_MESSAGES = ("prompt", "chosen", "rejected", "completion", *readers.TALKS)


def detect(entry: Entry) -> str:
  """The name of a row's format.

  Raises:
    RowError: the keys are those of no format.
  """
  for name, (matches, _) in FORMATS.items():
    if matches(entry):
      return name
  if "chosen" in entry or "rejected" in entry or "completion" in entry:
    raise RowError('has no "prompt", and not both "chosen" and "rejected" to find it in')
  keys = ", ".join(str(key)[:40] for key in list(entry)[:6])
  raise RowError(f'has no "prompt", nor another known format\'s keys; its keys are {keys or "none"}')


def read(entry: Entry, *, needs: str) -> tuple[str, Preference | Scored]:
  """Reads a row of any format.

  Args:
    entry: the row as it stands in the file.
    needs: PROMPT keeps every further field as a column; COMPLETION requires one response, PAIR two, SCORED one, which may be
      labelled as bad. Scored responses serve all.

  Returns:
    The format's name, and the row, without what was not needed; `Scored` where it holds scored responses.

  Raises:
    RowError: the row doesn't fit; says why.
  """
  if not isinstance(entry, dict):
    raise RowError("is not an object")
  columns.refuse_unbuilt(entry)
  templates.options_of(entry)
  parts = entry | {key: examples.decoded(entry[key]) for key in _MESSAGES if key in entry}
  name = detect(parts)
  # If only an explicit prompt is needed, other fields may hold anything.
  alone = needs == PROMPT and "prompt" in entry and name != ULTRAFEEDBACK
  prompt, chosen, rejected = FORMATS["prompt" if alone else name][1](parts)
  if not alone:
    columns.refuse_unread(prompt, entry)
  prompt = columns.with_system(prompt, entry)
  if needs == PROMPT:
    return name, Preference({"split": "train"} | entry | {"prompt": prompt}, None, None)
  columns.weight(entry)
  if name == SCORES:
    row = {key: value for key, value in entry.items() if key not in ("responses", "scores", "response_answers")}
    row = {"split": "train"} | row | {"prompt": prompt}
    return name, Scored(row, chosen, rejected, readers.answers(entry, len(chosen)))
  if chosen is None:
    raise RowError('has no "chosen" (or "completion") response')
  if needs == PAIR and rejected is None:
    raise RowError('has no "rejected" response')
  if needs == PAIR and chosen == rejected:
    raise RowError("has the same text as chosen and as rejected")
  if name in _UNPAIRED and needs != SCORED:
    columns.refuse_bad(entry)
  row = {key: value for key, value in entry.items() if key not in ("chosen", "rejected", "completion", *readers.TALKS)}
  return name, Preference({"split": "train"} | row | {"prompt": prompt}, chosen, rejected)


def family(name: str) -> str:
  """The group of formats that may mix in one data set: rows with an explicit prompt may differ in their other fields."""
  if name in ("prompt", "completion", ULTRAFEEDBACK, SCORES) or name.startswith("preference, explicit"):
    return "prompt"
  return "preference, implicit prompt" if name.startswith("preference") else name


# Name: (whether a row has this format, its reader, which gives prompt, chosen and rejected); the first match counts.
FORMATS: dict[str, tuple[Callable[[Entry], bool], Callable[[Entry], tuple]]] = {
  ULTRAFEEDBACK: (lambda e: readers.strings(e, "prompt") and readers.whole(e), readers.ultrafeedback),
  SCORES: (readers.is_scored, readers.scored),
  "HH transcripts": (
    lambda e: "prompt" not in e and readers.is_transcript(e.get("chosen")) and readers.is_transcript(e.get("rejected")),
    readers.transcripts,
  ),
  "preference, explicit prompt in a conversation": (readers.is_continued, readers.continued),
  "preference, explicit prompt as a question": (readers.is_asked, readers.asked),
  "preference, implicit prompt, conversational": (
    lambda e: "prompt" not in e and readers.talk(e, "chosen", "rejected"),
    readers.implicit_messages,
  ),
  "preference, implicit prompt, standard": (
    lambda e: "prompt" not in e and readers.strings(e, "chosen", "rejected"),
    readers.implicit_text,
  ),
  "preference, explicit prompt, conversational": (
    lambda e: readers.talk(e, "prompt") and "chosen" in e,
    readers.explicit,
  ),
  "preference, explicit prompt, standard": (lambda e: "prompt" in e and "chosen" in e, readers.explicit),
  "completion": (lambda e: "prompt" in e and "completion" in e, readers.completion),
  "prompt": (lambda e: "prompt" in e, lambda e: (examples.prompt(e["prompt"]), None, None)),
  "conversation": (lambda e: readers.talk_of(e) is not None, readers.conversation),
  "MATH": (lambda e: readers.strings(e, "problem", "solution"), readers.math),
  "GSM8K": (lambda e: readers.strings(e, "question", "answer"), readers.gsm8k),
  "instruction": (readers.is_instruction, readers.instruction),
  "questions in turns": (lambda e: isinstance(e.get("turns"), list), readers.questions),
  "text": (lambda e: readers.strings(e, "text"), readers.text),
}
# Formats of one response, which a label may call bad.
_UNPAIRED = ("completion", "conversation", "instruction")
