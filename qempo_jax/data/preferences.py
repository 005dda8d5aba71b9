"""Preference pairs as text: from a data source, the open-list answer sets, scored samples, or a mix."""

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
  """Reads pairs in any format of `formats`; scored responses become pairs or single responses by `scored.separate`.

  A prompt is a string or a conversation that ends with the user's message. A string is one user message, or plain text
  for a model without a chat template. A response is a string (one assistant message) or a list of token ids. Without
  "rejected", "completion" may replace "chosen".

  Args:
    source: name or address of the source, see `sources`.
    rejected: True requires a rejected response in every row.
    on_bad_row: "error" or "skip".
    max_bad_share: largest share of skipped rows, beyond which loading fails.
    note: called with one line for the user if rows were skipped.
    tokenizer: as for `sources.load`.
    acceptable: smallest score of a scored response worth imitating.
    most: largest number of pairs of a prompt's scored responses.

  Returns:
    The pairs, in the source's order; other fields are columns of the row.

  Raises:
    InputError: the source cannot be read, or a row is invalid; names it.
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
  """Reads scored responses; pairs and single or labelled responses are converted by `scored.gather`.

  Arguments and errors are those of `load_preferences`.
  """
  reading = {"on_bad_row": on_bad_row, "max_bad_share": max_bad_share, "tokenizer": tokenizer}
  loaded = sources.load(source, needs=formats.SCORED, **reading)
  if loaded.bad and note:
    note(loaded.line())
  return scored.gather(loaded.examples)


def jsonl_preferences(path: str | pathlib.Path, *, rejected: bool) -> list[Preference]:
  """Reads pairs of one .jsonl or .jsonl.gz file; see `load_preferences`."""
  return load_preferences(f"jsonl:{path}", rejected=rejected)


def open_list_preferences(rows: Sequence[Row], *, per_prompt: int, seed: int) -> list[Preference]:
  """Makes pairs from the answer sets: an acceptable item is preferred to an item of another set.

  Items are drawn uniformly, so that with label smoothing the loss's optimum is uniform over the acceptable items.

  Args:
    rows: open-list rows, with `set_name`.
    per_prompt: pairs per prompt.
    seed: seed of the draws.

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
  """Makes pairs from one prompt's scored samples: the best with the worst, the second best with the second worst, ...

  Args:
    row: the prompt with its columns.
    responses: token ids, with the end token.
    rewards: one per response.
    most: largest number of pairs.

  Returns:
    The pairs whose rewards differ; empty if all rewards are equal.
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
  """Pairs an acceptable item, drawn uniformly from the row's answer set, with a bad sample of the prompt.

  Rejected samples have high probability under the policy. A pair does not affect responses outside all pairs. Pairs of
  two bare items would therefore leave the probability of the sentences that the model prefers.

  Args:
    row: an open-list row, with `set_name`.
    responses: token ids of the samples, with the end token.
    rewards: one per response; below 1 is bad.
    per_prompt: number of pairs.
    seed: seed of the draws.

  Returns:
    The pairs; empty if every sample is good.
  """
  rng = np.random.default_rng(seed)
  items = open_list.answer_set(row["set_name"]).items
  bad = [tuple(int(token) for token in ids) for ids, reward in zip(responses, rewards) if reward < 1]
  if not bad:
    return []
  draws = zip(rng.integers(len(items), size=per_prompt), rng.integers(len(bad), size=per_prompt))
  return [Preference(row, items[good], bad[wrong]) for good, wrong in draws]


def prompt_rows(rows: Sequence[Row]) -> list[Row]:
  """Returns the first row of every task, in order; the rows of a task share the prompt and the values of `columns.TASKS`."""
  first = {}
  for row in rows:
    first.setdefault((row["prompt"], columns.task(row)), row)
  return list(first.values())
