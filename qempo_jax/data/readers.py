"""Readers of the formats in `formats`: from a row to (prompt, chosen, rejected), with None for absent parts."""

import os
import re

from qempo_jax.data import columns
from qempo_jax.data import examples
from qempo_jax.data.examples import Message
from qempo_jax.data.examples import RowError
from qempo_jax.rewards import words

# A plain text has no prompt, so its first words are the prompt, as in sentiment control.
TEXT_PROMPT_WORDS = 8
# Fields with a whole conversation.
TALKS = ("messages", "conversations", "conversation")
# Fields of the response in Alpaca and OpenOrca.
_OUTPUTS = ("output", "response")

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def explicit(entry):
  """An explicit prompt, and the responses to it."""
  chosen = entry["chosen"] if "chosen" in entry else None
  rejected = entry.get("rejected")
  return (
    examples.prompt(entry["prompt"]),
    None if chosen is None else examples.response(chosen, "chosen"),
    None if rejected is None else examples.response(rejected, "rejected"),
  )


def implicit_messages(entry):
  """The shared first messages are the prompt; one assistant message must remain on each side."""
  chosen, rejected = (examples.messages(entry[name], name) for name in ("chosen", "rejected"))
  return cut(chosen, rejected)


def implicit_text(entry):
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


def ultrafeedback(entry):
  """Whole conversations, with the last user's text as a column, which the conversations must contain."""
  prompt, chosen, rejected = implicit_messages(entry)
  last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
  if examples.text(entry["prompt"], "prompt").strip() not in (last.strip(), first_user(prompt).strip()):
    raise RowError('has a "prompt" that its conversations do not hold')
  return prompt, chosen, rejected


def first_user(prompt) -> str:
  """The first user message's text."""
  return prompt if isinstance(prompt, str) else next(m["content"] for m in prompt if m["role"] == "user")


def transcripts(entry):
  """Anthropic's HH: two transcripts that differ in their last turn."""
  return cut(*(turns(examples.text(entry[name], name), name) for name in ("chosen", "rejected")))


def turns(transcript: str, name: str) -> tuple[Message, ...]:
  """The messages of a transcript, user and assistant in turn."""
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


def cut(chosen, rejected):
  """(prompt, chosen, rejected) of two conversations that differ only in their last message."""
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


def scored(entry):
  """A prompt, the responses to it, and their scores, in the places of chosen and rejected."""
  responses, scores = entry["responses"], entry["scores"]
  if not isinstance(responses, list | tuple) or not isinstance(scores, list | tuple) or not responses:
    raise RowError('has "responses" and "scores" that are not two lists')
  if len(responses) != len(scores):
    raise RowError(f'has {len(responses)} "responses" and {len(scores)} "scores"; give each response one score')
  return (
    examples.prompt(entry["prompt"]) if "prompt" in entry else columns.question(entry),
    tuple(examples.response(response, "responses") for response in responses),
    tuple(examples.number(score, "scores") for score in scores),
  )


def answers(entry, count):
  """The answer of each response, by a column of that name; None if unknown."""
  found = entry.get("response_answers")
  if examples.is_empty(found):
    return (None,) * count
  if not isinstance(found, list | tuple) or len(found) != count:
    raise RowError(f'has "response_answers" that are no list of {count}; give each response one, or null')
  return tuple(None if answer is None else str(answer) for answer in found)


def is_scored(entry):
  """True if a row has several responses and their scores."""
  return {"responses", "scores"} <= entry.keys() and ("prompt" in entry or columns.question(entry) is not None)


def completion(entry):
  """A prompt and one response."""
  return examples.prompt(entry["prompt"]), examples.response(entry["completion"], "completion"), None


def asked(entry):
  """A question in a column, and two answers to it."""
  answers = (examples.response(entry[name], name) for name in ("chosen", "rejected"))
  return columns.question(entry), *answers


def is_asked(entry):
  """True if the question is in a column, and not at the beginning of both answers."""
  if "prompt" in entry or not {"chosen", "rejected"} <= entry.keys() or (question := columns.question(entry)) is None:
    return False
  sides = [entry["chosen"], entry["rejected"]]
  if all(isinstance(side, str) for side in sides):
    return not all(side.lstrip().startswith(question.strip()) for side in sides)
  return not all(examples.is_messages(side) and len(side) > 1 for side in sides)


def talk_of(entry):
  """The name of the field with a whole conversation, or None."""
  return next((name for name in TALKS if examples.is_messages(entry.get(name))), None)


def continued(entry):
  """A conversation, and two answers to its last message."""
  name = talk_of(entry)
  answers = (examples.response(entry[side], side) for side in ("chosen", "rejected"))
  return examples.conversation(examples.messages(entry[name], name)), *answers


def is_continued(entry):
  """True if a row has a conversation and two answers to it."""
  if "prompt" in entry or not talk_of(entry) or not {"chosen", "rejected"} <= entry.keys():
    return False
  return not all(examples.is_messages(entry[side]) and len(entry[side]) > 1 for side in ("chosen", "rejected"))


def instruction(entry):
  """A question in a column, and one answer to it."""
  name = next(name for name in _OUTPUTS if strings(entry, name))
  return columns.question(entry), examples.text(entry[name], name), None


def is_instruction(entry):
  """True if the question is in a column, and its answer in another."""
  return (
    "prompt" not in entry and any(strings(entry, name) for name in _OUTPUTS) and columns.question(entry) is not None
  )


def conversation(entry):
  """A conversation; the assistant's last message is the response."""
  name = talk_of(entry)
  found = examples.messages(entry[name], name)
  if found[-1]["role"] == "user":
    return examples.conversation(found), None, None
  return examples.conversation(found[:-1]), found[-1]["content"], None


def gsm8k(entry):
  """A question and its answer."""
  return examples.text(entry["question"], "question"), examples.text(entry["answer"], "answer"), None


def math(entry):
  """A problem and its solution."""
  return examples.text(entry["problem"], "problem"), examples.text(entry["solution"], "solution"), None


def questions(entry):
  """The first of several questions; the others are a column."""
  turns = entry["turns"]
  if not turns:
    raise RowError('has an empty "turns"')
  return examples.text(turns[0], "turns"), None, None


def text(entry):
  """The first words, and what follows them, both as they stand."""
  whole = examples.text(entry["text"], "text")
  end = words.end_of(whole, TEXT_PROMPT_WORDS)
  return whole[:end], whole[end:] if whole[end:].strip() else None, None


def strings(entry, *names):
  """True if all these fields are texts."""
  return all(isinstance(entry.get(name), str) for name in names)


def talk(entry, *names):
  """True if all these fields are messages."""
  return all(examples.is_messages(entry.get(name)) for name in names)


def is_transcript(value):
  """True if a value is a transcript of Human and Assistant."""
  return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def whole(entry):
  """True if the responses are conversations that begin with the prompt."""
  return talk(entry, "chosen", "rejected") and len(entry["chosen"]) > 1 and len(entry["rejected"]) > 1
