"""The shapes that people's rows come in, told apart by their keys, and read into one: prompt, chosen, rejected.

Preference data has TRL's four forms (the prompt apart or inside the responses; plain texts or messages), UltraFeedback's
binarized one, and Anthropic's HH transcripts. Further: prompts with a completion, whole conversations, prompts alone,
GSM8K, MATH, benchmark questions in turns, and plain texts.
"""

from collections.abc import Callable
import os
import re
from typing import Any

from qempo_jax.data import examples
from qempo_jax.data.examples import Message
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import RowError

Entry = dict[str, Any]

# What a run needs of every row.
PROMPT, COMPLETION, PAIR = "prompt", "completion", "pair"
# A plain text has no prompt: its first words are one, as in sentiment control.
TEXT_PROMPT_WORDS = 8
ULTRAFEEDBACK = "UltraFeedback binarized"

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


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


def read(entry: Entry, *, needs: str) -> tuple[str, Preference]:
  """Reads a row of any format.

  Args:
    entry: the row as it stands in the file.
    needs: PROMPT keeps every further field as a column; COMPLETION requires one response, PAIR two.

  Returns:
    The format's name, and the row; without what was not needed.

  Raises:
    RowError: the row doesn't fit; says why.
  """
  if not isinstance(entry, dict):
    raise RowError("is not an object")
  name = detect(entry)
  # Where only the prompt is asked for and stands by itself, other fields may hold anything.
  alone = needs == PROMPT and "prompt" in entry and name != ULTRAFEEDBACK
  prompt, chosen, rejected = FORMATS["prompt" if alone else name][1](entry)
  if needs == PROMPT:
    return name, Preference({"split": "train"} | entry | {"prompt": prompt}, None, None)
  if chosen is None:
    raise RowError('has no "chosen" (or "completion") response')
  if needs == PAIR and rejected is None:
    raise RowError('has no "rejected" response')
  if needs == PAIR and chosen == rejected:
    raise RowError("has the same text as chosen and as rejected")
  if name.startswith("completion") and isinstance(entry.get("label"), bool) and not entry["label"]:
    raise RowError("is an unpaired completion labelled false, which is nothing to imitate")
  row = {key: value for key, value in entry.items() if key not in ("chosen", "rejected", "completion", "messages")}
  return name, Preference({"split": "train"} | row | {"prompt": prompt}, chosen, rejected)


def family(name: str) -> str:
  """What the formats of one data set have in common: rows with a prompt may differ in what else they hold."""
  if name in ("prompt", "completion", ULTRAFEEDBACK) or name.startswith("preference, explicit"):
    return "prompt"
  return "preference, implicit prompt" if name.startswith("preference") else name


def _explicit(entry):
  chosen = entry["chosen"] if "chosen" in entry else None
  rejected = entry.get("rejected")
  return (
      examples.prompt(entry["prompt"]),
      None if chosen is None else examples.response(chosen, "chosen"),
      None if rejected is None else examples.response(rejected, "rejected"),
  )


def _implicit_messages(entry):
  """The shared first messages are the prompt; what is left must be one assistant message each."""
  chosen, rejected = (examples.messages(entry[name], name) for name in ("chosen", "rejected"))
  return _cut(chosen, rejected)


def _implicit_text(entry):
  """The longest common beginning, back to a boundary between words, is the prompt."""
  chosen, rejected = (examples.text(entry[name], name) for name in ("chosen", "rejected"))
  shared = len(os.path.commonprefix([chosen, rejected]))
  while shared and not (chosen[shared - 1].isspace() or chosen[shared : shared + 1].isspace()):
    shared -= 1
  prompt = chosen[:shared].rstrip()
  if not prompt:
    raise RowError('has no "prompt", and chosen and rejected share no beginning')
  after = [examples.text(side[len(prompt) :], name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
  return prompt, *after


def _ultrafeedback(entry):
  """Whole conversations beside the last user's text, which the conversations must hold."""
  prompt, chosen, rejected = _implicit_messages(entry)
  last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
  if examples.text(entry["prompt"], "prompt").strip() not in (last.strip(), _first_user(prompt).strip()):
    raise RowError('has a "prompt" that its conversations do not hold')
  return prompt, chosen, rejected


def _first_user(prompt) -> str:
  return prompt if isinstance(prompt, str) else next(m["content"] for m in prompt if m["role"] == "user")


def _transcripts(entry):
  return _cut(*(_turns(examples.text(entry[name], name), name) for name in ("chosen", "rejected")))


def _turns(transcript: str, name: str) -> tuple[Message, ...]:
  before, *parts = _TURN.split(transcript)
  if before.strip():
    raise RowError(f'has a "{name}" with text before its first turn')
  found = [
      Message(role=_SPEAKERS[speaker], content=content.strip()) for speaker, content in zip(parts[::2], parts[1::2])
  ]
  if any(not message["content"] for message in found):
    raise RowError(f'has a "{name}" with an empty turn')
  if any(message["role"] != ("user", "assistant")[place % 2] for place, message in enumerate(found)):
    raise RowError(f'has a "{name}" whose turns do not alternate between Human and Assistant')
  return tuple(found)


def _cut(chosen, rejected):
  if chosen == rejected:
    raise RowError("has the same text as chosen and as rejected")
  shared = 0
  while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
    shared += 1
  if shared != len(chosen) - 1 or shared != len(rejected) - 1:
    raise RowError("has a chosen and a rejected conversation that differ before their last message")
  if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
    raise RowError("has a chosen or rejected conversation that does not end with the assistant")
  return examples.conversation(chosen[:shared]), chosen[-1]["content"], rejected[-1]["content"]


def _completion(entry):
  return examples.prompt(entry["prompt"]), examples.response(entry["completion"], "completion"), None


def _conversation(entry):
  found = examples.messages(entry["messages"], "messages")
  if found[-1]["role"] == "user":
    return examples.conversation(found), None, None
  return examples.conversation(found[:-1]), found[-1]["content"], None


def _gsm8k(entry):
  return examples.text(entry["question"], "question"), examples.text(entry["answer"], "answer"), None


def _math(entry):
  return examples.text(entry["problem"], "problem"), examples.text(entry["solution"], "solution"), None


def _questions(entry):
  turns = entry["turns"]
  if not turns:
    raise RowError('has an empty "turns"')
  return examples.text(turns[0], "turns"), None, None


def _text(entry):
  words = examples.text(entry["text"], "text").split()
  rest = " ".join(words[TEXT_PROMPT_WORDS:])
  return " ".join(words[:TEXT_PROMPT_WORDS]), rest or None, None


def _strings(entry, *names):
  return all(isinstance(entry.get(name), str) for name in names)


def _talk(entry, *names):
  return all(examples.is_messages(entry.get(name)) for name in names)


def _is_transcript(value):
  return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def _whole(entry):
  """Whether the responses are conversations that begin with the prompt."""
  return _talk(entry, "chosen", "rejected") and len(entry["chosen"]) > 1 and len(entry["rejected"]) > 1


# Name: (whether a row has this format, its reader, which gives prompt, chosen and rejected); the first match counts.
FORMATS: dict[str, tuple[Callable[[Entry], bool], Callable[[Entry], tuple]]] = {
    ULTRAFEEDBACK: (lambda e: _strings(e, "prompt") and _whole(e), _ultrafeedback),
    "HH transcripts": (
        lambda e: "prompt" not in e and _is_transcript(e.get("chosen")) and _is_transcript(e.get("rejected")),
        _transcripts,
    ),
    "preference, implicit prompt, conversational": (
        lambda e: "prompt" not in e and _talk(e, "chosen", "rejected"),
        _implicit_messages,
    ),
    "preference, implicit prompt, standard": (
        lambda e: "prompt" not in e and _strings(e, "chosen", "rejected"),
        _implicit_text,
    ),
    "preference, explicit prompt, conversational": (lambda e: _talk(e, "prompt") and "chosen" in e, _explicit),
    "preference, explicit prompt, standard": (lambda e: "prompt" in e and "chosen" in e, _explicit),
    "completion": (lambda e: "prompt" in e and "completion" in e, _completion),
    "prompt": (lambda e: "prompt" in e, lambda e: (examples.prompt(e["prompt"]), None, None)),
    "conversation": (lambda e: _talk(e, "messages"), _conversation),
    "MATH": (lambda e: _strings(e, "problem", "solution"), _math),
    "GSM8K": (lambda e: _strings(e, "question", "answer"), _gsm8k),
    "questions in turns": (lambda e: isinstance(e.get("turns"), list), _questions),
    "text": (lambda e: _strings(e, "text"), _text),
}
