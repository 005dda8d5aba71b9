"""Families (clusters) of prompts: the sampling unit of intervals, bounds and tests, by one key or by two crossed ones.

Prompts that share a template or a topic are not independent. With one key, its families are resampled whole. With two
crossed keys both are resampled, and a prompt's weight is the product of its two weights (pigeonhole bootstrap: Owen,
"The Pigeonhole Bootstrap", https://arxiv.org/abs/0712.1111), whose variance is never below the true one:

  weight of the prompt in row r and column c = w_r v_c,   variance = V_rows + V_columns.

Every figure is a ratio of sums over prompts, sum top / sum bottom: a mean has bottom = 1, a ratio of two methods the
baseline's values. Tables are [rows, columns]; one key has a single column, which is never resampled.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import answers

_CHUNK = 1_000_000  # Weights in memory at once.
_NOUNS = {"prompt": "prompts", "puzzle": "puzzles", "set_name": "sets", "wording": "wordings"}


class Clusters(NamedTuple):
  """Families of prompts.

  Attributes:
    keys: one name, or two crossed ones.
    labels: [keys, prompts] family of each prompt, counted from 0 by key.
    claim: population of a statement about families, such as "new wordings of these sets".
  """

  keys: tuple[str, ...]
  labels: np.ndarray
  claim: str

  @property
  def counts(self) -> tuple[int, ...]:
    """Number of families by key."""
    return tuple(len(np.unique(labels)) for labels in self.labels)

  def take(self, prompts: Sequence[int] | np.ndarray) -> "Clusters":
    """Families of the given prompts, in that order."""
    return of(dict(zip(self.keys, self.labels[:, np.asarray(prompts, int)], strict=True)), claim=self.claim)

  def in_words(self) -> str:
    """Numbers and kinds of families, such as "8 wordings" or "5 sets x 8 wordings"."""
    return " x ".join(f"{count} {noun(key)}" for count, key in zip(self.counts, self.keys, strict=True))

  def table(self, values: np.ndarray) -> np.ndarray:
    """Sums of [prompts] values by family: [rows, columns]."""
    rows, columns = self.labels[0], self.labels[1] if len(self.labels) > 1 else np.zeros_like(self.labels[0])
    sums = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(sums, (rows, columns), values)
    return sums


def of(columns: Mapping[str, Sequence], *, claim: str | None = None) -> Clusters:
  """Families of one column, or of two crossed ones.

  Args:
    columns: by key one label a prompt, in the order of the prompts; labels of any hashable kind.
    claim: see `Clusters`; None: "new KEYs".

  Raises:
    InputError: there is no column, more than two, or columns of different lengths.
  """
  if not 1 <= len(columns) <= 2 or len({len(column) for column in columns.values()}) != 1:
    sizes = ", ".join(f"{key} ({len(column)})" for key, column in columns.items()) or "none"
    raise InputError(f"Clusters need one column or two, with one label a prompt, not {sizes}.")
  labels = []
  for column in columns.values():
    number: dict = {}
    labels.append(
      [number.setdefault(label.item() if isinstance(label, np.generic) else label, len(number)) for label in column]
    )
  text = claim or " and ".join(f"new {noun(key)}" for key in columns)
  return Clusters(tuple(columns), np.array(labels, int), text)


def of_rows(rows: Sequence[Mapping], keys: Sequence[str], split: str) -> Clusters | None:
  """Families of a split's prompts: of the named columns, or of the task's own keys.

  A task's keys are those of `answers.clusters`. Of two keys, one with a single family is dropped, since the claim is
  then about that family. The result is None if no keys are named and a prompt is of no such task, or all are of one
  family.

  Args:
    rows: one for every prompt, in the order of the prompts.
    keys: columns, at most two; empty: the task's own.
    split: the split's name.

  Raises:
    InputError: a row lacks a column.
  """
  names = [answers.known(row.get("set_name")) for row in rows]
  task_labels = [answers.families(name, row["prompt"]) for name, row in zip(names, rows, strict=True)]
  if keys:
    columns = {
      key: [row.get(key, (labels or {}).get(key)) for row, labels in zip(rows, task_labels, strict=True)]
      for key in keys
    }
    for key, column in columns.items():
      if None in column:
        raise InputError(
          f"Rows of {split} lack the column {key!r} of evaluation.cluster: name another, or add it to every prompt and"
          " remove samples that were drawn without it."
        )
    return of(columns)
  tasks = {answers.clusters(split, name) for name in names}
  if None in task_labels or len(tasks) != 1:
    return None
  declared, claim = tasks.pop()
  columns = {key: [labels.get(key) for labels in task_labels] for key in declared}
  several = {key: column for key, column in columns.items() if len(set(column)) > 1}
  return of(several, claim=claim if len(several) == len(declared) else None) if several else None


def noun(key: str) -> str:
  """Noun of a key's families."""
  return _NOUNS.get(key, f"values of {key!r}")


def checked(clusters: Clusters | None, num_prompts: int) -> Clusters | None:
  """The clusters; raises InputError unless there is one label a prompt."""
  if clusters is not None and clusters.labels.shape[1] != num_prompts:
    raise InputError(f"Clusters have {clusters.labels.shape[1]} labels for {num_prompts} prompts: give one a prompt.")
  return clusters


def standard_error(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float, int]:
  """(estimate, standard error, degrees of freedom) of sum top / sum bottom, linearised, over resampled families.

    e = top - estimate bottom,   V = sum over keys of n / (n - 1) sum over families (sum of e)^2 / (sum bottom)^2,

  with n the families of a key; degrees of freedom are the fewest families minus 1. For families of one size it is s^2 /
  n. With two keys the cells' own variance counts twice, so that V is too large (Cameron, Gelbach & Miller, "Robust
  Inference With Multiway Clustering", 2011, subtract it, which can leave a negative variance).

  Args:
    top: [rows, columns].
    bottom: [rows, columns], with a nonzero sum.
  """
  estimate = top.sum() / bottom.sum()
  errors = top - estimate * bottom
  variance, fewest = 0.0, np.inf
  for axis in range(2 if top.shape[1] > 1 else 1):
    totals = errors.sum(axis=1 - axis)
    fewest = min(fewest, len(totals))
    if len(totals) > 1:
      variance += len(totals) / (len(totals) - 1) * np.sum(totals**2)
  return float(estimate), float(np.sqrt(variance) / abs(bottom.sum())), int(fewest) - 1


def resampled(top: np.ndarray, bottom: np.ndarray, *, num_draws: int, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
  """Draws of families with replacement, in chunks: (sum top, sum bottom, V as in `standard_error`), each [draws].

  Args:
    top: [rows, columns].
    bottom: [rows, columns].
    num_draws: number of resamples.
    seed: seed of the resampling.
  """
  rng = np.random.default_rng(seed)
  rows, columns = top.shape
  step = max(1, _CHUNK // (rows + columns))
  for start in range(0, num_draws, step):
    size = min(step, num_draws - start)
    w = rng.multinomial(rows, np.full(rows, 1 / rows), size).astype(float)
    v = rng.multinomial(columns, np.full(columns, 1 / columns), size) if columns > 1 else np.ones((size, 1))
    by_row = v @ top.T, v @ bottom.T  # [draws, rows] each
    above, below = ((w * sums).sum(axis=1) for sums in by_row)
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below != 0)[:, None]
    variance = np.zeros(size)
    if rows > 1:
      variance += rows / (rows - 1) * np.sum(w * (by_row[0] - ratio * by_row[1]) ** 2, axis=1)
    if columns > 1:
      totals = w @ top - ratio * (w @ bottom)
      variance += columns / (columns - 1) * np.sum(v * totals**2, axis=1)
    yield above, below, np.divide(variance, below**2, out=np.zeros_like(variance), where=below != 0)


def interval(
  top: np.ndarray, bottom: np.ndarray, *, level: float, num_draws: int, seed: int
) -> tuple[float, float, float]:
  """(estimate, low, high) of sum top / sum bottom: at each end the wider of a percentile interval and Student's.

  Percentile intervals are too narrow with few families; Student's alone misses a long tail. Both ends are NaN without
  at least two families of every key. All three are NaN if the bottom sums to 0.
  """
  from scipy import special

  if not bottom.sum():
    return np.nan, np.nan, np.nan
  estimate, error, freedom = standard_error(top, bottom)
  if freedom < 1:
    return estimate, np.nan, np.nan
  drawn = list(resampled(top, bottom, num_draws=num_draws, seed=seed))
  above, below = (np.concatenate([chunk[i] for chunk in drawn]) for i in range(2))
  ratios = np.divide(above, below, out=np.full_like(above, np.inf), where=below != 0)
  low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
  half = special.stdtrit(freedom, (1 + level) / 2) * error
  return estimate, float(min(low, estimate - half)), float(max(high, estimate + half))
