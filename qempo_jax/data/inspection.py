"""Inspection of training data: one example token by token, and counts of unusual examples in a data set."""

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from qempo_jax.data import columns
from qempo_jax.data import pair_tokens
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Preference


class Token(NamedTuple):
  """One token of an example.

  Attributes:
    id: token id.
    piece: the token's text, with blanks and line ends made visible.
    part: "template" (or "special" without a template), the role of the message, "response" or "end".
    trained: True if the token is in the loss.
  """

  id: int
  piece: str
  part: str
  trained: bool


class Summary(NamedTuple):
  """Counts over a data set; an example with several kinds of fault counts once for each.

  Attributes:
    examples: number of examples.
    long_prompts: prompts over the limit, which are dropped.
    long_responses: examples with a response over the limit, which are dropped.
    seams: responses whose tokens would differ if prompt and response were encoded as one text.
    early_ends: examples with an end token inside a response, which are dropped.
    forbidden: examples with a special token in a response that the policy never samples, which are dropped.
    endings: responses without exactly one end token at their end.
    bos: prompts by their number of BOS tokens.
    prompt_tokens: (mean, largest).
    response_tokens: (mean, largest).
    alike: pairs whose responses have the same tokens.
    tied: pairs whose columns score both responses the same.
    reversed: pairs whose columns score the rejected response higher.
    unrendered: responses that the chat template renders otherwise.
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
  unrendered: int = 0

  def lines(self) -> list[str]:
    """Formats the summary for the user."""
    lines = [
      f"{self.examples:,} examples; prompt {self.prompt_tokens[0]:.1f} tokens, at most {self.prompt_tokens[1]:,};"
      f" response {self.response_tokens[0]:.1f}, at most {self.response_tokens[1]:,}",
      "BOS tokens in a prompt: " + ", ".join(f"{number} in {count:,}" for number, count in sorted(self.bos.items())),
    ]
    for count, description in (
      (self.long_prompts, "prompts longer than data.max_prompt_length, dropped"),
      (self.long_responses, "examples with a response longer than sampling.max_response_length, dropped"),
      (self.early_ends, "examples with an end token inside a response, dropped"),
      (self.forbidden, "examples with a special token in a response (sampling.allowed_tokens), dropped"),
      (self.endings, "responses without exactly one end token at their end"),
      (self.seams, "responses whose first token would merge with the prompt's last (prefix violations)"),
      (
        self.unrendered,
        "responses that the chat template renders otherwise: prompt + response is not its conversation",
      ),
      (self.alike, "pairs whose chosen and rejected response have the same tokens"),
      (self.tied, "pairs whose scores are equal (ties)"),
      (self.reversed, "pairs whose rejected response has the higher score (reversed)"),
    ):
      lines.append(f"{count:,} {description}")
    if any(number > 1 for number in self.bos):
      lines.append("WARNING: prompts begin with two BOS tokens; the chat template and the tokenizer both add one")
    return lines


def explain(tokenizer: Any, example: Preference) -> dict[str, list[Token]]:
  """Returns the tokens of an example: {"prompt", "chosen", "rejected"}, without the sides it lacks."""
  encoder, options = pair_tokens.Encoder(tokenizer), templates.options_of(example.row)
  prompt = example.row["prompt"]
  sides = {"prompt": _prompt(tokenizer, prompt, encoder.prompt(prompt, options), options)}
  for name in ("chosen", "rejected"):
    response = getattr(example, name)
    if response is not None:
      ids = encoder.response(prompt, response, options)
      stops = tokenization.stop_token_ids(tokenizer)
      sides[name] = [_token(tokenizer, id_, "end" if id_ in stops else "response", True) for id_ in ids]
  return sides


def faults(
  tokens: dict[str, list[Token]], *, max_prompt_length: int, max_response_length: int, forbidden: Collection[int] = ()
) -> list[str]:
  """Lists the faults for which an explained example is dropped, or trained with a wrong ending."""
  lines = []
  if len(tokens["prompt"]) > max_prompt_length:
    lines.append(f"prompt of {len(tokens['prompt'])} tokens, over {max_prompt_length}: dropped")
  for name, side in tokens.items():
    ends = [token.part == "end" for token in side]
    if name != "prompt" and len(side) > max_response_length:
      lines.append(f"{name} response of {len(side)} tokens, over {max_response_length}: dropped")
    if name != "prompt" and (special := [token.piece for token in side if token.id in forbidden]):
      lines.append(f"{name} response with the special token {special[0]}: dropped (sampling.allowed_tokens)")
    if name != "prompt" and (not ends[-1] or sum(ends) != 1):
      lines.append(f"{name} response with {sum(ends)} end tokens" + " and none at the end" * (not ends[-1]))
  return lines


def summarise(
  tokenizer: Any,
  examples: Sequence[Preference],
  *,
  max_prompt_length: int,
  max_response_length: int,
  forbidden: Collection[int] = (),
) -> Summary:
  """Encodes every example and counts its tokens and faults."""
  encoder, stops = pair_tokens.Encoder(tokenizer), set(tokenization.stop_token_ids(tokenizer))
  long_prompts = long_responses = early = masked = endings = alike = 0
  bos, prompt_lengths, response_lengths = {}, [], []
  for row, *pair in examples:
    options = templates.options_of(row)
    prompt = encoder.prompt(row["prompt"], options)
    given = [response for response in pair if response is not None]
    responses = [encoder.response(row["prompt"], response, options) for response in given]
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
  mean_and_largest = lambda lengths: (float(np.mean(lengths)), max(lengths)) if lengths else (0.0, 0)
  sizes = mean_and_largest(prompt_lengths), mean_and_largest(response_lengths)
  gaps = [columns.score_gap(example.row) for example in examples if example.rejected is not None]
  score_counts = {"tied": sum(gap == 0 for gap in gaps), "reversed": sum(gap is not None and gap < 0 for gap in gaps)}
  counts = long_prompts, long_responses, encoder.seams, early, masked, endings
  return Summary(len(examples), *counts, bos, *sizes, alike, **score_counts, unrendered=encoder.unrendered)


def _leading(ids, bos) -> int:
  """Counts the BOS tokens at a prompt's start; in some models the same token also opens every message."""
  number = 0
  while number < len(ids) and ids[number] == bos:
    number += 1
  return number


def _prompt(tokenizer, prompt, ids, options) -> list[Token]:
  """Labels the prompt's tokens by message; a slow tokenizer has no character offsets, so its label is "prompt"."""
  if not getattr(tokenizer, "is_fast", False):
    return [_token(tokenizer, id_, "prompt", False) for id_ in ids]
  messages, templated = templates.turns(prompt), bool(tokenizer.chat_template)
  text = templates.render(tokenizer, messages, header=True, options=options) if templated else prompt
  encoded = tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
  spans, start = [], 0
  for message in messages:
    content = message["content"].strip()
    begin = text.find(content, start)
    if begin >= 0:  # a template may rewrite a message
      start = begin + len(content)
      spans.append((begin, start, message["role"]))
  outside = "template" if templated else "special"  # label of tokens outside all messages
  tokens = []
  for id_, (first, last) in zip(ids, encoded["offset_mapping"]):
    roles = [role for begin, end, role in spans if first < end and last > begin]
    tokens.append(_token(tokenizer, id_, roles[0] if roles else outside, False))
  return tokens


def _token(tokenizer, id_, part, trained) -> Token:
  piece = tokenizer.decode([id_])
  return Token(
    int(id_), piece.encode("unicode_escape").decode("ascii") if not piece.isprintable() else piece, part, trained
  )
