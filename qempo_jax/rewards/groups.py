"""Groups in the flat lists of reward functions: responses to the same prompt."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

import numpy as np


def members(prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> list[list[int]]:
  """Positions of each group, in order of first appearance; no group mixes prompts.

  Args:
    prompts: one a completion, text or messages.
    columns: further columns; a `group_id`, if present, separates groups of one prompt.

  Returns:
    Positions of each group's members.
  """
  positions: dict[Hashable, list[int]] = {}
  ids = columns.get("group_id") or [None] * len(prompts)
  for index, (prompt, group) in enumerate(zip(prompts, ids, strict=True)):
    key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=repr)
    positions.setdefault((key, group), []).append(index)
  return list(positions.values())


def score_groups(
  score: Callable[[Any, list[Any]], Sequence[float]],
  prompts: Sequence[Any],
  values: Sequence[Any],
  columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
  """Scores group by group; None values are excluded from their group and score None.

  Args:
    score: from (prompt, the group's values) to one score each.
    prompts: one a completion.
    values: one a completion, such as its text; None for unusable ones.
    columns: as in `members`.

  Returns:
    One score a completion.
  """
  scores: list[float | None] = [None] * len(values)
  for group in members(prompts, columns):
    usable = [index for index in group if values[index] is not None]
    if usable:
      given = score(prompts[usable[0]], [values[index] for index in usable])
      for index, value in zip(usable, given, strict=True):
        scores[index] = float(value)
  return scores


def mean_over_others(matrix: np.ndarray) -> np.ndarray:
  """[n] mean of each row of [n, n] without its diagonal; 0 for n = 1."""
  total = matrix.sum(axis=1) - np.diagonal(matrix)
  return total / max(len(matrix) - 1, 1)
