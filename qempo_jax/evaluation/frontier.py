"""Quality against diversity over many runs: points with intervals, dominance, hypervolume, matched comparisons."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import intervals


class Point(NamedTuple):
  """One operating point of one method, over all its seeds.

  Attributes:
    method: its name.
    label: keys and values of the operating point.
    prompts: in the order of the figures.
    seeds: training seeds.
    figures: by name [prompts, seeds x samples].
  """

  method: str
  label: str
  prompts: tuple[str, ...]
  seeds: tuple[int, ...]
  figures: dict[str, np.ndarray]

  def mean(self, name: str) -> float:
    """Mean over prompts of a figure."""
    return float(self.figures[name].mean())

  def interval(self, name: str, *, num_draws: int, level: float = 0.95, seed: int = 0) -> intervals.Interval:
    """Mean over prompts with its interval, from a bootstrap over prompts, then over seeds and samples."""
    return intervals.mean_interval(self.figures[name], level=level, num_draws=num_draws, seed=seed)


def points(runs: Sequence[Mapping]) -> list[Point]:
  """Joins the seeds of every operating point, in the order of the points' first runs.

  Args:
    runs: each with method, point ([[key, value], ...]), seed, prompts, and figures by name [prompts, any].

  Raises:
    InputError: there are no runs, or two of them have different prompts.
  """
  if not runs:
    raise InputError("There are no runs to draw: make some first.")
  groups = {}
  for run in runs:
    if run["prompts"] != runs[0]["prompts"]:
      raise InputError(f"{run['method']} with seed {run['seed']} has other prompts than the first run: use the same.")
    groups.setdefault((run["method"], label(run["point"])), []).append(run)
  all_points = []
  for (method, text), members in groups.items():
    joined = {
      name: np.concatenate([np.asarray(run["figures"][name], float) for run in members], axis=1)
      for name in members[0]["figures"]
    }
    seeds = tuple(run["seed"] for run in members)
    all_points.append(Point(method, text, tuple(runs[0]["prompts"]), seeds, joined))
  return all_points


def label(point: Sequence) -> str:
  """An operating point in words: the last part of each key with its value."""
  written = lambda value: value if isinstance(value, str) else f"{value:.3g}"
  return ", ".join(f"{'.'.join(key.split('.')[-2:])} {written(value)}" for key, value in point)


def dominated(values: np.ndarray) -> np.ndarray:
  """Dominated points: another one is at least as good in every column and better in one.

  Args:
    values: [points, columns], larger is better.

  Returns:
    [points] booleans.
  """
  values = np.asarray(values, float)
  at_least = np.all(values[:, None] >= values[None], axis=-1)
  better = np.any(values[:, None] > values[None], axis=-1)
  return np.any(at_least & better, axis=0)


def hypervolume(values: np.ndarray, reference: Sequence[float]) -> float:
  """Area between the reference point and the upper right edge of the points, both larger-is-better.

  Points that do not exceed the reference in both columns add nothing. It grows with the number of points, so compare
  methods with similar numbers of them. Zitzler & Thiele, "Multiobjective evolutionary algorithms", 1999.

  Args:
    values: [points, 2].
    reference: the lower left corner.
  """
  above = np.asarray(values, float) - np.asarray(reference, float)
  above = above[np.all(above > 0, axis=1)]
  area, height = 0.0, 0.0
  for width, tall in above[np.lexsort((-above[:, 1], -above[:, 0]))]:
    area += width * max(0.0, tall - height)
    height = max(height, tall)
  return float(area)


def hypervolume_interval(
  of_method: Sequence[Point], names: tuple[str, str], reference: Sequence[float], *, num_draws: int, seed: int = 0
) -> intervals.Interval:
  """Hypervolume of one method's points with a 95 % percentile interval over prompts.

  A maximum over noisy points is biased upwards, and the interval does not correct that.
  """
  tables = np.array([[point.figures[name].mean(axis=1) for name in names] for point in of_method])  # [points, 2, P]
  chosen = np.random.default_rng(seed).integers(tables.shape[2], size=(num_draws, tables.shape[2]))
  draws = [hypervolume(tables[:, :, rows].mean(axis=2), reference) for rows in chosen]
  low, high = np.quantile(draws, [0.025, 0.975])
  return intervals.Interval(hypervolume(tables.mean(axis=2), reference), float(low), float(high))


class Match(NamedTuple):
  """One method against the baseline at one level of quality; a side without a point there is None.

  Attributes:
    level: level of quality.
    method: its name.
    point: its most diverse point within the tolerance of the level.
    baseline_point: the baseline's most diverse point within the tolerance.
    quality: remaining difference in quality.
    diversity: comparison of diversity, corrected (Holm) over all methods at this level.
  """

  level: float
  method: str
  point: Point | None
  baseline_point: Point | None
  quality: intervals.Interval | None
  diversity: comparisons.Comparison | None


def matched(
  found: Sequence[Point], *, quality: str, diversity: str, baseline: str, levels: Sequence[float], tolerance: float,
  num_draws: int, seed: int = 0,
) -> list[Match]:  # fmt: skip
  """Compares, at each quality level, each method's most diverse point within `tolerance` with the baseline's.

  The points are selected by the same figures that are compared, which slightly favours methods with more points.
  """
  methods = list(dict.fromkeys(point.method for point in found))
  rows = []
  for level in levels:
    picked = {}
    for method in methods:
      near = [p for p in found if p.method == method and abs(p.mean(quality) - level) <= tolerance]
      if near:
        picked[method] = max(near, key=lambda point: point.mean(diversity))
    compared, left = {}, {}
    if baseline in picked and len(picked) > 1:
      settings = {"num_draws": num_draws, "seed": seed}
      figures = {name: point.figures[diversity] for name, point in picked.items()}
      compared = comparisons.compare_with(baseline, figures, **settings)
      theirs = picked[baseline].figures[quality]
      left = {n: intervals.paired_difference(picked[n].figures[quality], theirs, **settings) for n in compared}
    for method in methods:
      if method != baseline:
        pair = picked.get(method), picked.get(baseline)
        rows.append(Match(level, method, *pair, left.get(method), compared.get(method)))
  return rows
