"""Evaluation rows: one JSON object for every sampled completion, checked and arranged by prompt."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import equivalence

METHODS = ("base", "grpo", "qempo", "qempo_kl", "qempo_c")
SPLITS = ("train", "validation_wordings", "heldout_wordings", "heldout_set")
# In the order of tables; a method without a name here keeps its own and comes last.
METHOD_LABELS = {
  "base": "Base", "grpo": "GRPO", "grpo_bonus": "GRPO + bonus", "spl": "SPL", "mara": "MARA", "ucpo": "UCPO",
  "setpo": "SetPO", "repo": "REPO", "maxrl": "MaxRL", "darling": "DARLING", "dpo": "DPO",
  "nll": "Likelihood", "listwise": "Listwise", "equal_quality": "DPO, equal quality",
  "qempo_fixed": "QEMPO, fixed weight", "qempo_kl": "QEMPO-KL", "qempo": "QEMPO", "qempo_c": "QEMPO-C",
}  # fmt: skip
SPLIT_LABELS = {
  "train": "training prompts",
  "validation_wordings": "validation wordings",
  "heldout_wordings": "held-out wordings",
  "heldout_set": "held-out sets",
}

_NUMBERS = ("reward", "log_prob", "ref_log_prob", "entropy", "num_tokens", "truncated")
_MAY_BE_NONE = ("log_prob", "ref_log_prob", "entropy", "num_tokens", "truncated")  # Not given by every program.
_OPTIONAL = ("noncanonical", "unscored")  # Known to programs that have the tokens, or called the reward.
_FIELDS = ("method", "seed", "split", "set_name", "prompt", "sample", "completion", "answer", *_NUMBERS)


class SplitSamples(NamedTuple):
  """Samples of one method on one split; axis 0 of every array is `prompts`.

  Attributes:
    prompts: distinct tasks by `task_name`, sorted, so that every method has them in the same order.
    set_names: answer set of each prompt.
    seeds: training seeds, sorted.
    figures: by field, [prompts, seeds, samples] numbers; NaN for None.
    answers: [prompts][seeds][samples] canonical answers, None if not acceptable.
    completions: [prompts][seeds][samples] texts.
    exact: by name, [prompts, seeds] exact figures; empty if no row has any, NaN if a row lacks a figure.
    dropped: number of rows dropped so that every prompt has equally many samples.
    clusters: families of the prompts; None: independent prompts.
  """

  prompts: tuple[str, ...]
  set_names: tuple[str, ...]
  seeds: tuple[int, ...]
  figures: dict[str, np.ndarray]
  answers: list[list[list[str | None]]]
  completions: list[list[list[str]]]
  dropped: int
  exact: dict[str, np.ndarray]
  clusters: families.Clusters | None = None


def check_rows(rows: Sequence[Mapping], reward_range: tuple[float, float] | None = None) -> None:
  """Raises InputError, with row and field, if a field is missing, or a number not finite or out of range."""
  if not rows:
    raise InputError("There are no evaluation rows to summarise: sample some completions first.")
  check_range(reward_range)
  for index, row in enumerate(rows):
    missing = [field for field in _FIELDS if field not in row]
    if missing:
      raise InputError(f"Evaluation row {index} lacks {missing[0]!r}: every row needs {', '.join(_FIELDS)}.")
    for field in _NUMBERS:
      if row[field] is None and field in _MAY_BE_NONE:
        continue
      if not isinstance(row[field], (int, float, np.number, np.bool_)) or not math.isfinite(row[field]):
        raise InputError(f"Evaluation row {index} has {field} = {row[field]!r}: it must be a finite number.")
    if reward_range is not None and not reward_range[0] <= row["reward"] <= reward_range[1]:
      raise InputError(
        f"Evaluation row {index} has reward = {row['reward']:g}, outside reward_range {tuple(reward_range)}: set "
        "evaluation.reward_range to the reward's least and greatest value, or to () where it has none."
      )


def check_range(reward_range: tuple[float, float] | None) -> None:
  """Raises InputError unless it is None, or two numbers in order."""
  if reward_range is not None and not (len(reward_range) == 2 and reward_range[0] < reward_range[1]):
    raise InputError(
      f"evaluation.reward_range={tuple(reward_range)} must be the reward's least and greatest value, or () for none"
    )


def arrange(
  rows: Iterable[Mapping],
  num_samples: Mapping[str, int],
  acceptable: Mapping[str, float],
  cluster: Sequence[str] = (),
) -> dict[tuple[str, str], SplitSamples]:
  """Groups rows by (method, split) into arrays with the first `num_samples[split]` samples a prompt and seed.

  Args:
    rows: of any methods and splits.
    num_samples: by split.
    acceptable: by split the least reward of an acceptable output. For prompts without a set of known answers, answers
      are the normal forms of acceptable completions; see `equivalence.normal_form`.
    cluster: columns whose values are families of prompts, at most two; empty: the task's own.

  Raises:
    InputError: a method lacks one of its prompts for one of its seeds, or a prompt lacks a column of `cluster`.
  """
  groups = defaultdict(lambda: defaultdict(list))
  for row in rows:
    groups[row["method"], row["split"]][task_name(row), row["seed"]].append(row)
  return {
    key: _arrange_one(key, cells, num_samples[key[1]], acceptable[key[1]], tuple(cluster))
    for key, cells in groups.items()
  }


def samples_per_prompt(rows: Iterable[Mapping]) -> dict[str, int]:
  """For each split the fewest samples of any method, prompt and seed, at which all can be compared."""
  counts = defaultdict(int)
  for row in rows:
    counts[row["split"], row["method"], task_name(row), row["seed"]] += 1
  fewest = {}
  for (split, *_), count in counts.items():
    fewest[split] = min(count, fewest.get(split, count))
  return fewest


def task_name(row: Mapping) -> str:
  """Identity of a task: its prompt, with its `task` if several tasks share the prompt."""
  return f"{row['prompt']}\n[{row['task']}]" if row.get("task") else row["prompt"]


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
  """Names in their usual order, unknown ones last."""
  return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def _answer(row, acceptable):
  if row["set_name"]:
    return row["answer"]
  return equivalence.normal_form(row["completion"]) if _acceptable(row, acceptable) else None


def _acceptable(row, least) -> bool:
  """True where the reward is at least the least acceptable one, and is a judgement."""
  return row["reward"] >= least and not row.get("unscored")


def _exact(table: list[list[dict]]) -> dict[str, np.ndarray]:
  """Exact figures of each prompt and seed, as its first sample has them."""
  names = dict.fromkeys(name for line in table for cell in line for name in cell)
  return {name: np.array([[_number(cell.get(name)) for cell in line] for line in table]) for name in names}


def _number(value):
  return math.nan if value is None else float(value)


def _arrange_one(key, cells, num_samples, acceptable, cluster):
  prompts = sorted({prompt for prompt, _ in cells})
  seeds = sorted({seed for _, seed in cells})
  for prompt in prompts:
    for seed in seeds:
      if (prompt, seed) not in cells:
        raise InputError(
          f"Method {key[0]!r}, split {key[1]!r}, seed {seed} has no sample of prompt {prompt!r}: sample it."
        )
  kept = {cell: sorted(rows, key=lambda row: row["sample"])[:num_samples] for cell, rows in cells.items()}
  for name in cluster:
    for (prompt, _), rows in cells.items():
      if len({row.get(name) for row in rows} | {cells[prompt, seeds[0]][0].get(name)}) > 1:
        raise InputError(f"Prompt {prompt!r} has several values of the cluster column {name!r}: give it one family.")
  table = [[kept[prompt, seed] for seed in seeds] for prompt in prompts]
  figures = {
    field: np.array([[[_number(row.get(field)) for row in cell] for cell in line] for line in table])
    for field in (*_NUMBERS, *_OPTIONAL)
  }
  figures["acceptable"] = np.array(
    [[[_acceptable(row, acceptable) for row in cell] for cell in line] for line in table]
  )
  return SplitSamples(
    prompts=tuple(prompts),
    set_names=tuple(line[0][0]["set_name"] for line in table),
    seeds=tuple(seeds),
    figures=figures,
    answers=[[[_answer(row, acceptable) for row in cell] for cell in line] for line in table],
    completions=[[[row["completion"] for row in cell] for cell in line] for line in table],
    exact=_exact([[row.get("exact") or {} for row, *_ in line] for line in table]),
    dropped=sum(map(len, cells.values())) - sum(map(len, kept.values())),
    clusters=families.of_rows([line[0][0] for line in table], cluster, key[1]),
  )
