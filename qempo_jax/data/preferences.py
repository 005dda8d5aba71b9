"""Preference pairs as text: from a data source, from the open-list answer sets, from scored samples, or mixed."""

from collections.abc import Callable
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from qempo_jax.data import columns
from qempo_jax.data import formats
from qempo_jax.data import scored
from qempo_jax.data import sources
from qempo_jax.data.examples import Message as Message
from qempo_jax.data.examples import Preference as Preference
from qempo_jax.data.examples import Prompt as Prompt
from qempo_jax.data.examples import Response as Response
from qempo_jax.data.examples import Row
from qempo_jax.data.examples import Scored
from qempo_jax.rewards import open_list


def load_preferences(
  source: str,
  *,
  rejected: bool,
  on_bad_row: str = "error",
  max_bad_share: float = 0.01,
  note: Callable[[str], None] | None = None,
  tokenizer: Any = None,
  acceptable: float = 1.0,
  most: int = 1,
) -> list[Preference]:
  """Reads pairs, in any of the shapes of `formats`; scored responses make pairs, or single ones, by `scored.separate`.

  A prompt is a string (one user message, or plain text for a model without a chat template) or a conversation that
  ends with the user's message. A response is a string, one assistant message, or a list of token ids, taken as they
  are. Without "rejected", "completion" may stand for "chosen".

  Args:
    source: one of those in `sources`.
    rejected: whether every row must have a rejected response.
    on_bad_row: "error" or "skip".
    max_bad_share: of skipped rows, beyond which the run stops.
    note: gets a line for the user where rows were skipped.
    tokenizer: as for `sources.load`.
    acceptable: of scored responses: the least score of one that is worth imitating.
    most: pairs of a prompt's scored responses, at most.

  Returns:
    The pairs, in the source's order; further fields are columns of the row.

  Raises:
    InputError: the source can't be read, or a row does not fit; names it.
  """
  needs = formats.PAIR if rejected else formats.COMPLETION
  loaded = sources.load(source, needs=needs, on_bad_row=on_bad_row, max_bad_share=max_bad_share, tokenizer=tokenizer)
  if loaded.bad and note:
    note(loaded.line())
  return scored.separate(loaded.examples, responses=1 + rejected, acceptable=acceptable, most=most)


def load_scored(
  source: str,
  *,
  on_bad_row: str = "error",
  max_bad_share: float = 0.01,
  note: Callable[[str], None] | None = None,
  tokenizer: Any = None,
) -> list[Scored]:
  """Reads scored responses; pairs and single responses, labelled ones too, become such by `scored.gather`.

  Arguments and errors are those of `load_preferences`.
  """
  reading = {"on_bad_row": on_bad_row, "max_bad_share": max_bad_share, "tokenizer": tokenizer}
  loaded = sources.load(source, needs=formats.SCORED, **reading)
  if loaded.bad and note:
    note(loaded.line())
  return scored.gather(loaded.examples)


def jsonl_preferences(path: str | pathlib.Path, *, rejected: bool) -> list[Preference]:
  """`load_preferences` of one .jsonl or .jsonl.gz file."""
  return load_preferences(f"jsonl:{path}", rejected=rejected)


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


def prompt_rows(rows: Sequence[Row]) -> list[Row]:
  """The first row of every task, in order: of one prompt and one set of `columns.TASKS`, which its pairs share."""
  first = {}
  for row in rows:
    first.setdefault((row["prompt"], columns.task(row)), row)
  return list(first.values())
