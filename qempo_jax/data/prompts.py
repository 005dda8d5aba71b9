"""Rows with a prompt and further columns, and the order in which training visits them."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import open_list

Row = dict[str, Any]


def open_list_rows(split: str, *, sets: Sequence[str] = (), wordings: Sequence[int] = ()) -> list[Row]:
  """The open-list tasks of a split as rows with `prompt`, `set_name` and `split`; empty choices mean all."""
  found = open_list.tasks(split, sets=sets or None, wordings=wordings or None)
  return [task._asdict() for task in found]


def jsonl_rows(path: str) -> list[Row]:
  """Reads prompts from a JSON Lines file.

  Args:
    path: a file with one object a line; each has a string "prompt", the other fields are columns for the reward.

  Returns:
    The rows.

  Raises:
    InputError: the file can't be read, or a line is not such an object; names the line.
  """
  try:
    lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"data file {path} cannot be read ({error})") from error
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise InputError(f"{path}, line {number} is not JSON ({error.msg}); each line must be one object") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
      raise InputError(f"{path}, line {number} has no string \"prompt\"; each line must be an object with one")
    rows.append({"split": "train"} | row)
  if not rows:
    raise InputError(f"{path} holds no rows")
  return rows


def load_rows(source: str, *, sets: Sequence[str] = (), wordings: Sequence[int] = ()) -> list[Row]:
  """The training rows of a source: "open_list" or "jsonl:PATH"."""
  kind, _, path = source.partition(":")
  if source == "open_list":
    return open_list_rows("train", sets=sets, wordings=wordings)
  if kind == "jsonl" and path:
    return jsonl_rows(path)
  raise InputError(f"data.source={source!r} is not known; use open_list or jsonl:PATH")


def batch_indices(step: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
  """Which rows a step visits: a pure function of (seed, step), each row once an epoch.

  Args:
    step: from 0.
    batch_size: rows a step.
    num_rows: rows there are.
    seed: of the order.

  Returns:
    `batch_size` indices.
  """
  places = range(step * batch_size, (step + 1) * batch_size)
  epochs = {place // num_rows for place in places}
  orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_rows) for epoch in epochs}
  return [int(orders[place // num_rows][place % num_rows]) for place in places]
