"""Files of samples, one JSON object a line: written by `experiments.evaluate` and the demo, or by any other program."""

from collections.abc import Callable
from collections.abc import Iterable
import itertools
import json
import math
import pathlib

import numpy as np

from qempo_jax.data import columns
from qempo_jax.errors import InputError
from qempo_jax.rewards import answers
from qempo_jax.rewards import checked

# Types of the fields that are not the sampling program's own.
_NUMBERS = (int, float, bool)
_TYPES = {
  **dict.fromkeys(("method", "split", "set_name"), ((str,), "a text")),
  **dict.fromkeys(("seed", "sample"), ((int,), "a whole number")),
  **dict.fromkeys(("reward", "log_prob", "ref_log_prob", "entropy", "num_tokens"), (_NUMBERS, "a finite number")),
  **dict.fromkeys(("truncated", "noncanonical", "unscored"), (_NUMBERS, "true or false")),
  "exact": ((dict,), "an object of figures"),
}
# Fields of one sample, which tell no tasks apart, and the columns that do.
_KNOWN = {*_TYPES, "prompt", "completion", "tokens", "token_ids", "judge", *columns.TASKS}
_UNKNOWN = ("log_prob", "ref_log_prob", "entropy", "num_tokens", "truncated", "noncanonical", "unscored")
_MAY_BE_NULL = ("log_prob", "ref_log_prob", "entropy", "answer")


def read(folder: pathlib.Path, reward: Callable[[], Callable], least: float = 0.0) -> tuple[list[dict], list[str]]:
  """The rows of every *.jsonl in a folder, completed, and notes about them for the user.

  A row needs `prompt` and `completion`. What else it lacks is filled in: method (the file's name), seed 0, split
  "prompts", sample (its place), set_name "", reward (by the reward function, with the row's further fields as
  columns); length, truncation, entropy and log-probabilities stay unknown. null is an absent field. Rows of
  one prompt are of different tasks where they differ in `task` or in a column that says what is right: see
  `data.columns.TASKS`.

  Args:
    folder: of the files.
    reward: makes the reward function; called only where some row lacks its reward.
    least: the least possible reward. An `unscored` row has it, or the least of all judged rows if that is lower.

  Raises:
    InputError: there is no file, or a line is no such row; names it.
  """
  files, notes = {}, []
  for path in sorted(folder.glob("*.jsonl")):
    found = of_file(path)
    unscored = [row for row in found if row.get("reward") is None]
    if unscored:
      _score(unscored, reward())
      notes.append(f"{path.name}: {len(unscored)} rewards computed now")
      if failed := sum(row["unscored"] for row in unscored):
        notes.append(f"{path.name}: {failed} completions could not be judged, and count as the least reward")
    method = path.name.removesuffix(".jsonl")
    files[path.name] = [{"method": method, "seed": 0, "split": "prompts", "set_name": ""} | row for row in found]
  rows = [row for found in files.values() for row in found]
  if not rows:
    raise InputError(f"There are no samples in {folder}: set evaluation.sample=True, or put NAME.jsonl files there.")
  judged = np.array([math.nan if row.get("unscored") else row["reward"] for row in rows], float)
  for row, value in zip(rows, checked.least_for_unscored(judged, least).tolist(), strict=True):
    if row.get("unscored"):  # by one rule for all methods
      row["reward"] = value
  notes += _pooled(files)
  if several := _name_tasks(rows):
    notes.append(f"{several} prompts stand in several tasks, which are evaluated apart: see each row's task")
  notes += filter(None, (_unread(name, found) for name, found in files.items()))
  return list(_completed(rows)), notes


def of_file(path: pathlib.Path) -> list[dict]:
  """The rows of one file as they are; raises InputError as `read`."""
  try:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} can't be read ({error}): give UTF-8 text, one JSON object a line.") from error
  return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _row(line: str, where: str) -> dict:
  """A line's object without its nulls, which are absent fields; each known field of its type."""
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(f"{where} is not JSON ({error}): give one object a line.") from error
  except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
    raise InputError(
      f"{where} is not JSON that can be read ({type(error).__name__}): give one object a line."
    ) from error
  if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "completion")):
    raise InputError(f'{where} needs "prompt" and "completion", each a text.')
  if "\\ud" in line.lower():  # a lone surrogate, half a character, can be neither written nor tokenized
    row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
  row = {key: value for key, value in row.items() if value is not None or key in _MAY_BE_NULL}
  for field, (kinds, what) in _TYPES.items():
    value = row.get(field)
    if value is not None and (type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value))):
      raise InputError(f"{where} has {field} = {str(value)[:40]!r}: it must be {what}, or absent.")
  for name, value in row.get("exact", {}).items():
    if value is not None and type(value) not in _NUMBERS:
      raise InputError(f"{where} has exact figure {name} = {str(value)[:40]!r}: it must be a number, or null.")
  return row


def _score(rows: list[dict], function: Callable) -> None:
  names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion", "reward"))
  columns = {name: [row.get(name) for row in rows] for name in names}
  if "token_ids" in columns:
    columns.setdefault("completion_ids", columns["token_ids"])
  rewards = checked.scores_or_nan(
    function, [row["prompt"] for row in rows], [row["completion"] for row in rows], columns
  )
  for row, value in zip(rows, rewards.tolist(), strict=True):
    row["reward"], row["unscored"] = value, math.isnan(value)


def _pooled(files: dict[str, list[dict]]) -> Iterable[str]:
  """Notes about files of one method and seed, whose samples are taken together.

  Raises:
    InputError: one sample, by its number, stands in two of them.
  """
  places: dict[tuple, dict[str, set]] = {}
  for name, found in files.items():
    for row in found:
      of_file = places.setdefault((row["method"], row["seed"], row["split"]), {}).setdefault(name, set())
      of_file |= {(row["prompt"], _task(row), row["sample"])} if "sample" in row else set()
  pooled = {}
  for (method, seed, _), of_files in places.items():
    for one, other in itertools.combinations(of_files, 2):
      if both := of_files[one] & of_files[other]:
        raise InputError(
          f"{one} and {other} both hold sample {min(both, key=str)[2]} of one prompt by method {method!r}, seed {seed}:"
          " remove one, or give its rows another method or seed"
        )
    if len(of_files) > 1:
      pooled[f"{' and '.join(of_files)} are of method {method!r}, seed {seed}, and taken together"] = None
  return list(pooled)


def _name_tasks(rows: list[dict]) -> int:
  """Gives rows whose prompt stands in several tasks their `task`; returns how many such prompts there are."""
  keys = [(row["split"], row["prompt"]) for row in rows]
  names = columns.tell_apart(keys, list(map(_task, rows)))
  for row, name in zip(rows, names, strict=True):
    row["task"] = name
  return len({key for key, name in zip(keys, names, strict=True) if name})


def _task(row: dict) -> str:
  return str(row["task"]) if "task" in row else columns.task(_reference(row))


def _reference(row: dict) -> dict:
  """The row's columns that may tell its task; beside a known set, `answer` is the sample's own."""
  return {name: value for name, value in row.items() if name != "answer"} if row["set_name"] else row


def _unread(name: str, rows: list[dict]) -> str:
  """A note about columns in which rows of one task differ, as samples do and tasks may; empty where there are none."""
  values: dict[tuple, set[str]] = {}
  for row in rows:
    for column in row.keys() - _KNOWN:
      if isinstance(row[column], float | bool):
        continue  # a score
      values.setdefault((row["split"], row["prompt"], row["task"], column), set()).add(
        columns.whole_row({"": row[column]})
      )
  found = sorted({column for (*_, column), different in values.items() if len(different) > 1})
  if not found:
    return ""
  return (
    f"{name}: rows of one prompt differ in {', '.join(found)}, taken as the samples' own; where they are different tasks,"
    " give each row a `task`"
  )


def _completed(rows: Iterable[dict]) -> Iterable[dict]:
  counts: dict[tuple, int] = {}
  for row in rows:
    cell = (row["method"], row["seed"], row["split"], row["prompt"], row["task"])
    place = counts[cell] = counts.get(cell, -1) + 1
    if "answer" not in row:
      row["answer"] = answers.parse_answer(row["completion"], row["set_name"]) if row["set_name"] else None
    yield dict.fromkeys(_UNKNOWN) | {"sample": place} | row
