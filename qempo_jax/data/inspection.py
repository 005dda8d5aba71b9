"""What a model will really be trained on: an example token by token, and what is odd about a whole data set."""

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from qempo_jax.data import columns
from qempo_jax.data import pair_tokens
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Preference


class Token(NamedTuple):
  """One token of an example.

  Attributes:
    id: its number.
    piece: its text, with blanks and line ends made visible.
    part: "template" (without one "special"), the role whose text it is of, "response" or "end".
    trained: whether the loss reads it.
  """

  id: int
  piece: str
  part: str
  trained: bool


class Summary(NamedTuple):
  """Counts over a data set; an example with a fault is counted once for each kind.

  Attributes:
    examples: there are.
    long_prompts: prompts over the limit, which are dropped.
    long_responses: examples with a response over the limit, which are dropped.
    seams: responses whose tokens would differ if prompt and response were encoded as one text.
    early_ends: examples with a response that holds its ending token before its end, which are dropped.
    forbidden: examples with a response that holds a special token which the policy never samples, which are dropped.
    endings: responses that end otherwise than with exactly one ending token.
    bos: prompts by their number of BOS tokens.
    prompt_tokens: (mean, largest).
    response_tokens: (mean, largest).
    alike: pairs whose responses have the same tokens.
    tied: pairs whose columns score both responses the same.
    reversed: pairs whose columns score the rejected response higher.
  """

  examples: int
  long_prompts: int
  long_responses: int
  seams: int
  early_ends: int
  forbidden: int
  endings: int
  bos: dict[int, int]
  prompt_tokens: tuple[float, int]
  response_tokens: tuple[float, int]
  alike: int = 0
  tied: int = 0
  reversed: int = 0

  def lines(self) -> list[str]:
    """The summary for the user."""
    found = [
      f"{self.examples:,} examples; prompt {self.prompt_tokens[0]:.1f} tokens, at most {self.prompt_tokens[1]:,};"
      f" response {self.response_tokens[0]:.1f}, at most {self.response_tokens[1]:,}",
      "BOS tokens in a prompt: " + ", ".join(f"{number} in {count:,}" for number, count in sorted(self.bos.items())),
    ]
    for count, what in (
      (self.long_prompts, "prompts longer than data.max_prompt_length, dropped"),
      (self.long_responses, "examples with a response longer than sampling.max_response_length, dropped"),
      (self.early_ends, "examples with the ending token inside a response, dropped"),
      (self.forbidden, "examples with a special token in a response (sampling.allowed_tokens), dropped"),
      (self.endings, "responses without exactly one ending token at their end"),
      (self.seams, "responses whose first token would merge with the prompt's last (prefix violations)"),
      (self.alike, "pairs whose chosen and rejected response have the same tokens"),
      (self.tied, "pairs whose scores are equal (ties)"),
      (self.reversed, "pairs whose rejected response has the higher score (reversed)"),
    ):
      found.append(f"{count:,} {what}")
    if any(number > 1 for number in self.bos):
      found.append("WARNING: a BOS stands twice; the chat template and the tokenizer both add one")
    return found


def explain(tokenizer: Any, example: Preference) -> dict[str, list[Token]]:
  """The tokens of an example: {"prompt", "chosen", "rejected"}, as far as it has them."""
  encoder = pair_tokens.Encoder(tokenizer)
  prompt = example.row["prompt"]
  found = {"prompt": _prompt(tokenizer, prompt, encoder.prompt(prompt))}
  for name in ("chosen", "rejected"):
    response = getattr(example, name)
    if response is not None:
      ids = encoder.response(prompt, response)
      stops = tokenization.stop_token_ids(tokenizer)
      found[name] = [_token(tokenizer, id_, "end" if id_ in stops else "response", True) for id_ in ids]
  return found


def faults(
  tokens: dict[str, list[Token]], *, max_prompt_length: int, max_response_length: int, forbidden: Collection[int] = ()
) -> list[str]:
  """What keeps an explained example from being trained on as it is."""
  found = []
  if len(tokens["prompt"]) > max_prompt_length:
    found.append(f"prompt of {len(tokens['prompt'])} tokens, over {max_prompt_length}: dropped")
  for name, side in tokens.items():
    ends = [token.part == "end" for token in side]
    if name != "prompt" and len(side) > max_response_length:
      found.append(f"{name} response of {len(side)} tokens, over {max_response_length}: dropped")
    if name != "prompt" and (held := [token.piece for token in side if token.id in forbidden]):
      found.append(f"{name} response with the special token {held[0]}: dropped (sampling.allowed_tokens)")
    if name != "prompt" and (not ends[-1] or sum(ends) != 1):
      found.append(f"{name} response with {sum(ends)} ending tokens" + " and none at the end" * (not ends[-1]))
  return found


def summarise(
  tokenizer: Any,
  examples: Sequence[Preference],
  *,
  max_prompt_length: int,
  max_response_length: int,
  forbidden: Collection[int] = (),
) -> Summary:
  """Encodes every example and counts."""
  encoder, stops = pair_tokens.Encoder(tokenizer), set(tokenization.stop_token_ids(tokenizer))
  long_prompts = long_responses = early = masked = endings = alike = 0
  bos, prompt_lengths, response_lengths = {}, [], []
  for row, *pair in examples:
    prompt = encoder.prompt(row["prompt"])
    given = [response for response in pair if response is not None]
    responses = [encoder.response(row["prompt"], response) for response in given]
    number = 0 if tokenizer.bos_token_id is None else _leading(prompt, tokenizer.bos_token_id)
    bos[number] = bos.get(number, 0) + 1
    long_prompts += len(prompt) > max_prompt_length
    long_responses += any(len(ids) > max_response_length for ids in responses)
    early += any(isinstance(text, str) and encoder.ends_early(ids) for text, ids in zip(given, responses))
    masked += any(token in forbidden for ids in responses for token in ids)
    endings += sum(ids[-1] not in stops or sum(token in stops for token in ids) != 1 for ids in responses)
    alike += len(responses) == 2 and tuple(responses[0]) == tuple(responses[1])
    prompt_lengths.append(len(prompt))
    response_lengths += map(len, responses)
  mean_and_most = lambda lengths: (float(np.mean(lengths)), max(lengths)) if lengths else (0.0, 0)
  sizes = mean_and_most(prompt_lengths), mean_and_most(response_lengths)
  gaps = [columns.score_gap(example.row) for example in examples if example.rejected is not None]
  against = {"tied": sum(gap == 0 for gap in gaps), "reversed": sum(gap is not None and gap < 0 for gap in gaps)}
  counts = long_prompts, long_responses, encoder.seams, early, masked, endings
  return Summary(len(examples), *counts, bos, *sizes, alike, **against)


def _leading(ids, bos) -> int:
  """How many BOS tokens a prompt begins with; in some models the same token also opens every message."""
  number = 0
  while number < len(ids) and ids[number] == bos:
    number += 1
  return number


def _prompt(tokenizer, prompt, ids) -> list[Token]:
  """The prompt's tokens by the message they are of; a slow tokenizer, without places in the text, says only "prompt"."""
  if not getattr(tokenizer, "is_fast", False):
    return [_token(tokenizer, id_, "prompt", False) for id_ in ids]
  messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
  templated = bool(tokenizer.chat_template)
  text = (
    tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True) if templated else prompt
  )
  encoded = tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
  spans, start = [], 0
  for message in messages:
    content = message["content"].strip()
    place = text.find(content, start)
    if place >= 0:  # a template may rewrite a message
      start = place + len(content)
      spans.append((place, start, message["role"]))
  around = "template" if templated else "special"  # what is no message's text
  found = []
  for id_, (first, last) in zip(ids, encoded["offset_mapping"]):
    roles = [role for begin, end, role in spans if first < end and last > begin]
    found.append(_token(tokenizer, id_, roles[0] if roles else around, False))
  return found


def _token(tokenizer, id_, part, trained) -> Token:
  piece = tokenizer.decode([id_])
  return Token(
    int(id_), piece.encode("unicode_escape").decode("ascii") if not piece.isprintable() else piece, part, trained
  )
