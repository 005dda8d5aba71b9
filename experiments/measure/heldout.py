"""Figures of held-out prompts while a run trains: a few means over an evaluation's samples."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from experiments.measure.evaluator import Evaluator


class HeldOut(NamedTuple):
  """Measures the policy of a train state after every `every` updates.

  Attributes:
    every: updates between measurements.
    patience: measurements in a row without a higher reward after which a run ends; 0 for never.
    evaluate: samples and scores the held-out prompts.
    as_policy: trainable parameters -> the policy's parameters.
  """

  every: int
  patience: int
  evaluate: Evaluator
  as_policy: Callable[[Any], Any]

  def __call__(self, params, step: int) -> dict[str, float]:
    """The figures after a step, counted from 1; {} if none are due."""
    if step % self.every:
      return {}
    return figures(self.evaluate(self.as_policy(params), method="policy", seed=0))

  def ending(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The reason to end the run after these rows of metrics, or None."""
    found = {row["step"]: reward for row in rows if (reward := _reward(row)) is not None}
    best = max(found, key=found.get, default=0)  # the first of equals
    if not self.patience or sum(step > best for step in found) < self.patience:
      return None
    return (
      f"step {max(found)} is the last: the held-out reward was never above the {found[best]:.3g} of step {best} in"
      f" evaluation.patience={self.patience} measurements since; --checkpoint={best} reads that step if checkpoint.every kept it"
    )


def _reward(row: Mapping[str, Any]) -> float | None:
  """The mean held-out reward over the splits, None where it was not measured."""
  rewards = [value for key, value in row.items() if key.startswith("heldout/") and key.endswith("/reward")]
  return None if not rewards or None in rewards else float(np.mean(rewards))


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """By `heldout/SPLIT/FIGURE`: mean reward, entropy (nats a response), and different answers of a prompt's samples.

  Where all right answers are listed, also exact P(acceptable) and effective answers.
  An answer is a sample's parsed acceptable answer where the task knows its answers, else its text.

  Args:
    rows: of `Evaluator`, one a sample.
  """
  found: dict[str, float] = {}
  for split in dict.fromkeys(row["split"] for row in rows):
    here = [row for row in rows if row["split"] == split]
    answers: dict[str, set] = {}
    for row in here:
      answer = row["answer"] if row["set_name"] else row["completion"]
      answers.setdefault(str(row["prompt"]), set()).update({answer} - {None})
    found |= {f"heldout/{split}/{name}": float(np.mean([row[name] for row in here])) for name in ("reward", "entropy")}
    exact = [row["exact"] for row in here if "exact" in row]
    for name in ("acceptable", "effective_answers") if exact else ():
      found[f"heldout/{split}/exact/{name}"] = float(np.mean([of_prompt[name] for of_prompt in exact]))
    found[f"heldout/{split}/distinct"] = float(np.mean([len(different) for different in answers.values()]))
  return found
