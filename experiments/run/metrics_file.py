"""`metrics.jsonl`, one JSON object a step: its one reader and the form of a line, for training, evaluation and the demo."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.paths import json_numbers

NAME = "metrics.jsonl"

_MOST = 3  # lines named


def read(path: pathlib.Path, note: Callable[[str], None] = print) -> list[dict[str, Any]]:
  """The rows of a file, in order; [] without a file.

  A last line that was cut short is what a killed process or a full disk leaves, and is dropped. Other damage is left out too,
  and `note` is told of it in one line.

  Args:
    path: the file.
    note: told which lines are damaged.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    *lines, last = path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(
      f"{path} could not be read ({error.strerror}); nothing was changed: mend the cause, then try again"
    ) from error
  rows, damaged = [], []
  for number, text in enumerate(lines, start=1):
    row = _row(text)
    if row is not None:
      rows.append(row)
    elif text.strip():
      damaged.append(str(number))
  row = _row(last)
  if row is not None:  # whole, but for its line end
    rows.append(row)
  if damaged:
    more = f" and {len(damaged) - _MOST} more" if len(damaged) > _MOST else ""
    note(f"{path}: line {', '.join(damaged[:_MOST])}{more} is damaged (no JSON object with a `step`), and left out")
  return rows


def line(metrics: dict[str, Any]) -> str:
  """One step as a line of JSON; a value that is not finite, for which JSON has no word, is null."""
  return json.dumps(json_numbers(metrics, infinity=lambda value: None), allow_nan=False) + "\n"


def _row(text: bytes) -> dict[str, Any] | None:
  """The row in a line; None for a line without one."""
  try:
    row = json.loads(text, parse_constant=lambda _: None)
  except (ValueError, RecursionError):
    return None
  step = row.get("step") if isinstance(row, dict) else None
  return row if isinstance(step, int) and step > 0 else None
