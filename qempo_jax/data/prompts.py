"""Prompt rows of the built-in tasks and of data sources, and their order in training."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from qempo_jax.data import formats
from qempo_jax.data import order
from qempo_jax.data import sources
from qempo_jax.data.examples import Message
from qempo_jax.data.examples import Row as Row
from qempo_jax.rewards import answers
from qempo_jax.rewards import countdown
from qempo_jax.rewards import open_list


def open_list_rows(split: str, *, sets: Sequence[str] = (), wordings: Sequence[int] = ()) -> list[Row]:
  """Returns the open-list tasks of a split as rows with `prompt`, `set_name` and `split`; empty choices select all."""
  return [task._asdict() for task in open_list.tasks(split, sets=sets or None, wordings=wordings or None)]


def countdown_rows(split: str) -> list[Row]:
  """Returns the puzzles of a split as rows with `prompt` (a conversation), `target`, `set_name` and `split`."""
  return [
    {
      "prompt": tuple(map(Message, countdown.prompt(target))),
      "target": target,
      "set_name": answers.countdown_set(target),
      "split": split,
    }
    for target in countdown.targets(split)
  ]


def load_rows(
  source: str,
  *,
  sets: Sequence[str] = (),
  wordings: Sequence[int] = (),
  on_bad_row: str = "error",
  max_bad_share: float = 0.01,
  note: Callable[[str], None] | None = None,
  tokenizer: Any = None,
) -> list[Row]:
  """Loads the training rows of a source: "open_list", "countdown", or a source that `sources.load` reads.

  Args:
    source: name or address of the source.
    sets: open_list only: names of answer sets; empty for all.
    wordings: open_list only: indices of wordings; empty for all.
    on_bad_row: "error" or "skip".
    max_bad_share: largest share of skipped rows, beyond which loading fails.
    note: called with one line for the user if rows were skipped.
    tokenizer: as for `sources.load`.

  Returns:
    Rows with `prompt`, `split` and the source's further columns.

  Raises:
    InputError: the source is unknown or unreadable, or a row is invalid; names the first.
  """
  if source == "open_list":
    return open_list_rows("train", sets=sets, wordings=wordings)
  if source == "countdown":
    return countdown_rows("train")
  loaded = sources.load(
    source, needs=formats.PROMPT, on_bad_row=on_bad_row, max_bad_share=max_bad_share, tokenizer=tokenizer
  )
  if loaded.bad and note:
    note(loaded.line())
  return [example.row for example in loaded.examples]


def batch_indices(step: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
  """Returns the row indices of a step, a pure function of (seed, step), with each row once an epoch; see `order.Order`.

  Args:
    step: index of the step, from 0.
    batch_size: rows per step.
    num_rows: number of rows.
    seed: seed of the order.

  Returns:
    `batch_size` indices.
  """
  return order.Order(num_rows, batch_size=batch_size, seed=seed).batch(step)
