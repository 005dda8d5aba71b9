"""Files of samples, one JSON object a line: written by `experiments.evaluate` and the demo, or by any other program."""

from collections.abc import Callable
from collections.abc import Iterable
import json
import pathlib

from qempo_jax.errors import InputError
from qempo_jax.evaluation import lexical
from qempo_jax.rewards import checked
from qempo_jax.rewards import open_list


def read(folder: pathlib.Path, reward: Callable[[], Callable]) -> tuple[list[dict], list[str]]:
  """The rows of every *.jsonl in a folder, completed, and what the user should know about them.

  A row needs `prompt` and `completion`. What else it lacks is filled in: method (the file's name), seed 0, split
  "prompts", sample (its place), set_name "", reward (by the reward function, with the row's further fields as
  columns), length in words, not truncated; entropy and log-probabilities stay unknown.

  Args:
    folder: of the files.
    reward: makes the reward function; called only where some row lacks its reward.

  Raises:
    InputError: there is no file, or a line is no such row; names it.
  """
  rows, notes = [], []
  for path in sorted(folder.glob("*.jsonl")):
    found = [_row(line, f"{path}, line {number}") for number, line in enumerate(_lines(path), start=1) if line.strip()]
    unscored = [row for row in found if row.get("reward") is None]
    if unscored:
      _score(unscored, reward())
      notes.append(f"{path.name}: {len(unscored)} rewards computed now")
    if any("num_tokens" not in row for row in found):
      notes.append(f"{path.name}: lengths are words, for it has no num_tokens; without `truncated` nothing counts as cut")
    rows += _completed(found, path.name.removesuffix(".jsonl"))
  if not rows:
    raise InputError(f"There are no samples in {folder}: set evaluation.sample=True, or put NAME.jsonl files there.")
  return rows, notes


def _lines(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} can't be read ({error}): give UTF-8 text, one JSON object a line.") from error


def _row(line: str, where: str) -> dict:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(f"{where} is not JSON ({error}): give one object a line.") from error
  if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "completion")):
    raise InputError(f'{where} needs "prompt" and "completion", each a text.')
  return row


def _score(rows: list[dict], function: Callable) -> None:
  names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion", "reward"))
  columns = {name: [row.get(name) for row in rows] for name in names}
  rewards = checked.scores(function, [row["prompt"] for row in rows], [row["completion"] for row in rows], columns)
  for row, value in zip(rows, rewards, strict=True):
    row["reward"] = float(value)


def _completed(rows: Iterable[dict], method: str) -> Iterable[dict]:
  counts: dict[tuple, int] = {}
  for row in rows:
    row = {"method": method, "seed": 0, "split": "prompts", "set_name": ""} | row
    cell = (row["method"], row["seed"], row["split"], row["prompt"])
    place = counts[cell] = counts.get(cell, -1) + 1
    if "answer" not in row:
      row["answer"] = open_list.parse_answer(row["completion"], row["set_name"]) if row["set_name"] else None
    unknown = {"log_prob": None, "ref_log_prob": None, "entropy": None}
    yield unknown | {"sample": place, "num_tokens": len(lexical.split(row["completion"])), "truncated": False} | row
