"""Scored responses, several per prompt: conversion from and to pairs, and encoding for listwise losses."""

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

import numpy as np

from qempo_jax import losses
from qempo_jax.data import columns
from qempo_jax.data import pair_selection
from qempo_jax.data import pair_tokens
from qempo_jax.data import templates
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import Row
from qempo_jax.data.examples import Scored
from qempo_jax.data.pair_tokens import PairTokens
from qempo_jax.errors import InputError
from qempo_jax.offline_losses import ListWeights
from qempo_jax.rewards import answers as answers_lib

_OF_A_RESPONSE = {*columns.SINGLE_SCORES, *(name for names in columns.SCORES for name in names)}
_OF_A_SIDE = "chosen_", "rejected_"  # prefixes of columns about one response of a pair


def gather(examples: Sequence[Preference | Scored]) -> list[Scored]:
  """Collects all responses to each task of each prompt, in order.

  A pair contributes two responses with the scores in its columns, else 1 and 0. A single response contributes its score
  or label, else 1.
  """
  found: dict[tuple, tuple[dict, list]] = {}
  for example in examples:
    row = {
      name: value
      for name, value in example.row.items()
      if name not in _OF_A_RESPONSE and not name.startswith(_OF_A_SIDE)
    }
    members = found.setdefault((row["prompt"], columns.task(row)), (row, []))[1]
    if isinstance(example, Scored):
      members += zip(example.responses, example.scores, example.answers, strict=True)
    elif example.rejected is None:
      members.append((example.chosen, columns.single_score(example.row), None))
    else:
      chosen, rejected = columns.pair_scores(example.row) or (1.0, 0.0)
      members += [(example.chosen, chosen, None), (example.rejected, rejected, None)]
  return [Scored(row, *zip(*members, strict=True)) for row, members in found.values()]


def separate(
  examples: Sequence[Preference | Scored], *, responses: int, acceptable: float, most: int
) -> list[Preference]:
  """Converts scored responses to pairs, or single responses; existing pairs are kept.

  Args:
    examples: of either kind.
    responses: 1 for every acceptable response in the log; 2 for the best with the worst, the second best with the second
      worst, ...
    acceptable: smallest score of an acceptable response.
    most: largest number of pairs per prompt.
  """
  found = []
  for example in examples:
    if not isinstance(example, Scored):
      found.append(example)
    elif responses == 1:
      good = [y for y, score in zip(example.responses, example.scores, strict=True) if score >= acceptable]
      found += [Preference(example.row, y, None) for y in good]
    else:
      for best, worst in pair_selection.best_worst(example.scores, most=most):
        scores = {"score_chosen": example.scores[best], "score_rejected": example.scores[worst]}
        found.append(Preference(example.row | scores, example.responses[best], example.responses[worst]))
  return found


def of_samples(row: Row, responses: Sequence[Sequence[int]], rewards: Sequence[float]) -> Scored:
  """One prompt's samples, token ids with the end token, with their rewards."""
  ids = tuple(tuple(int(token) for token in response) for response in responses)
  return Scored(row, ids, tuple(map(float, rewards)), (None,) * len(ids))


def to_json(example: Preference | Scored) -> dict[str, Any]:
  """Returns the object that is read back as this example."""
  if isinstance(example, Preference):
    pair = {"chosen": example.chosen, "rejected": example.rejected}
    return example.row | {name: value for name, value in pair.items() if value is not None}
  found = example.row | {"responses": example.responses, "scores": example.scores}
  return found | (
    {"response_answers": example.answers} if any(answer is not None for answer in example.answers) else {}
  )


def list_weights(acceptable: np.ndarray, answers: np.ndarray, texts: np.ndarray) -> ListWeights:
  """Returns the arrays that listwise losses need of one prompt's whole log.

  Args:
    acceptable: [n] True on acceptable responses.
    answers: [n] integers, equal if two responses give the same answer.
    texts: [n] integers, equal if two responses have the same tokens.

  Returns:
    Weights [n]; `chosen` and `rejected` each sum to 1 or are all 0.
  """
  chosen, bad = losses.even_weights(acceptable, answers), ~acceptable
  copies = ((texts[:, None] == texts) & acceptable).sum(axis=1)  # a text may have several scores
  sizes = np.where(acceptable, 1 / np.where(acceptable, chosen * copies, 1), bad.mean())
  return ListWeights(chosen, bad / max(1, bad.sum()), sizes)


def encode_lists(
  tokenizer: Any,
  examples: Sequence[Scored],
  *,
  size: int,
  acceptable: float,
  max_prompt_length: int,
  max_response_length: int,
  too_long: str = "drop",
  forbidden: Collection[int] = (),
) -> PairTokens:
  """Encodes scored responses; responses outside the policy's support, or too long, are left out.

  Prompts without an acceptable response are left out too.

  A prompt with more than `size` responses makes several examples, each with its share of the acceptable and of the other
  responses. Weights are those of the whole log, so that an epoch's losses average to the mean over prompts. The answer of
  a response is its `response_answers`, else the parsed answer if the row's `set_name` is a task with known answers, else
  its tokens.

  Args:
    tokenizer: the model's.
    examples: one per prompt and task.
    size: responses per example, G; shorter lists are padded with empty ones.
    acceptable: smallest score of an acceptable response.
    max_prompt_length: tokens.
    max_response_length: tokens, end token included.
    too_long: as for `pair_tokens.encode_pairs`, for responses.
    forbidden: ids that the policy never samples.

  Returns:
    The examples with `lists`; `dropped`, `ended` and `forbidden` count responses.

  Raises:
    InputError: no prompt has an acceptable response that is short enough.
  """
  encoder = pair_tokens.Encoder(tokenizer)
  rows, prompts, groups, weights, used = [], [], [], [], 0
  left_out = {"dropped": 0, "ended": 0, "forbidden": 0}
  for example in examples:
    options = templates.options_of(example.row)
    prompt = encoder.prompt(example.row["prompt"], options)
    kept = []
    for response, score, answer in zip(*example[1:], strict=True):
      ids = encoder.response(example.row["prompt"], response, options)
      if isinstance(response, str) and encoder.ends_early(ids):
        left_out["ended"] += 1
      elif any(token in forbidden for token in ids):
        left_out["forbidden"] += 1
      elif (
        len(prompt) > max_prompt_length
        or (ids := pair_tokens.fitted(ids, example.row, max_response_length, too_long)) is None
      ):
        left_out["dropped"] += 1
      else:
        kept.append((ids, score >= acceptable, answer or _answer(tokenizer, example.row, response) or ids))
    good = np.array([is_good for _, is_good, _ in kept], bool)
    if not good.any():
      continue
    found = list_weights(good, _numbers([answer for *_, answer in kept]), _numbers([ids for ids, *_ in kept]))
    order, parts, used = np.argsort(~good, kind="stable"), -(-len(kept) // size), used + 1
    for part in (order[first::parts] for first in range(parts)):
      rows.append(example.row)
      prompts.append(prompt)
      groups.append((*(kept[place][0] for place in part), *[()] * (size - len(part))))
      filled = [np.pad(x[part], (0, size - len(part))) for x in found]
      weights.append(ListWeights(filled[0], parts * filled[1], filled[2]))
  if not rows:
    raise InputError(
      f"no prompt is left with an acceptable response, of score {acceptable:g} or more: lower offline.acceptable, or raise"
      f" data.max_prompt_length={max_prompt_length} or sampling.max_response_length={max_response_length} (tokens)"
    )
  lists = ListWeights(*(np.stack(column).astype(np.float32) for column in zip(*weights, strict=True)))
  lists = lists._replace(chosen=lists.chosen * (len(rows) / used))
  counts = left_out | {"seams": encoder.seams, "unrendered": encoder.unrendered}
  return PairTokens(rows, prompts, groups, lists=lists, **counts)


def _answer(tokenizer, row, response) -> str | None:
  name = answers_lib.known(row.get("set_name"))
  if not name:
    return None
  text = response if isinstance(response, str) else tokenizer.decode(response, skip_special_tokens=True)
  return answers_lib.parse_answer(text, name)


def _numbers(values: Sequence[Any]) -> np.ndarray:
  """Integers, equal for equal values."""
  known: dict[Any, int] = {}
  return np.array([known.setdefault(value, len(known)) for value in values])
