"""Comparisons of several methods with one baseline on the same prompts: differences, tests, and Holm's correction."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import intervals

_EXACT_PROMPTS = 12  # Up to this number all 2^n sign patterns are enumerated.


class Comparison(NamedTuple):
  """One method against the baseline.

  Attributes:
    difference: mean over prompts of method minus baseline, with its two-sided interval at `level`.
    simultaneous: the same at 1 - (1 - level) / methods, so that all intervals hold together at `level` (Bonferroni).
    p_value: two-sided p-value of the sign-flip test, or of Student's with two crossed keys. See `p_value`.
    adjusted_p_value: Holm's, over all methods compared.
    different: True if the adjusted p-value is at most 1 - level.
  """

  difference: intervals.Interval
  simultaneous: intervals.Interval
  p_value: float
  adjusted_p_value: float
  different: bool


def compare_with(
  baseline: str,
  figures: Mapping[str, np.ndarray],
  *,
  level: float = 0.95,
  num_draws: int = 2000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> dict[str, Comparison]:
  """Compares every other method with `baseline`, prompt by prompt.

  Args:
    baseline: name of the method compared with.
    figures: by method [prompts] or [prompts, samples], the prompts in one order for all.
    level: confidence level of the intervals; 1 - level is the error rate of all tests together.
    num_draws: number of bootstrap draws, and of sign patterns.
    seed: seed of both.
    clusters: families of the prompts, resampled and tested whole; None: independent prompts.

  Returns:
    By method a Comparison.

  Raises:
    InputError: the baseline is missing, or the methods differ in their number of prompts.
  """
  if baseline not in figures:
    raise InputError(f"There is no method {baseline!r} to compare with: choose one of {', '.join(figures)}.")
  others = [name for name in figures if name != baseline]
  arrays = {name: np.asarray(values, float) for name, values in figures.items()}
  for name in others:
    if len(arrays[name]) != len(arrays[baseline]):
      raise InputError(f"{name!r} has {len(arrays[name])} prompts, {baseline!r} {len(arrays[baseline])}: use the same.")
  settings = {"num_draws": num_draws, "seed": seed, "clusters": clusters}
  p_values = np.array([p_value(_by_prompt(arrays[name]) - _by_prompt(arrays[baseline]), **settings) for name in others])
  adjusted = holm(p_values)
  compared = {}
  paired = intervals.PairedDraws(arrays[baseline], **settings)
  for index, name in enumerate(others):
    levels = (level, 1 - (1 - level) / len(others))
    difference, simultaneous = paired.differences(arrays[name], levels=levels)
    compared[name] = Comparison(
      difference=difference,
      simultaneous=simultaneous,
      p_value=float(p_values[index]),
      adjusted_p_value=float(adjusted[index]),
      different=bool(adjusted[index] <= 1 - level + 1e-12),
    )
  return compared


def p_value(
  differences: np.ndarray, *, num_draws: int = 2000, seed: int = 0, clusters: families.Clusters | None = None
) -> float:
  """Two-sided test that the mean of the prompts' differences is 0.

  With one key it is the sign-flip test over the families' sums. With two crossed keys it is Student's test of mean /
  standard error, with the fewest families of a key minus 1 degrees of freedom; see `clusters.standard_error`. Flipping
  rows would preserve what rows share, and so miss the variance of the columns.

  Args:
    differences: [prompts].
    num_draws: number of sign patterns, if there are too many to enumerate.
    seed: seed of the patterns.
    clusters: families of the prompts; None: independent prompts.
  """
  from scipy import special

  if clusters is None:
    return sign_flip_p_value(differences, num_draws=num_draws, seed=seed)
  differences = np.asarray(differences, float)
  families.checked(clusters, len(differences))
  top, bottom = clusters.table(differences), clusters.table(np.ones_like(differences))
  if len(clusters.keys) == 1:
    return sign_flip_p_value(top[:, 0], num_draws=num_draws, seed=seed)
  estimate, error, freedom = families.standard_error(top, bottom)
  if freedom < 1 or not estimate:
    return 1.0
  return float(2 * special.stdtr(freedom, -abs(estimate) / error)) if error else 0.0


def sign_flip_p_value(differences: np.ndarray, *, num_draws: int = 2000, seed: int = 0) -> float:
  """Two-sided test that the prompts' differences are symmetric around 0, by flipping their signs.

    p = share of sign patterns whose |mean| is at least the observed one,

  exact over all patterns up to 12 prompts, else (1 + hits) / (1 + draws), which keeps its level at any number of
  draws. Fisher, "The Design of Experiments", 1935; Phipson & Smyth, https://arxiv.org/abs/1603.05766. With n prompts
  it is never below 2^(1-n).
  """
  differences = np.asarray(differences, float)
  count = len(differences)
  observed = abs(differences.sum()) * (1 - 1e-12)  # Equal sums may differ by rounding.
  if count <= _EXACT_PROMPTS:
    signs = 1 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    return float(np.mean(np.abs(signs @ differences) >= observed))
  signs = np.random.default_rng(seed).choice([-1.0, 1.0], (num_draws, count))
  return float((1 + np.sum(np.abs(signs @ differences) >= observed)) / (1 + num_draws))


def holm(p_values: np.ndarray) -> np.ndarray:
  """Holm's adjusted p-values: rejecting those at or below a keeps the probability of any false rejection at a.

    p_(i)' = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m).

  Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979; valid under any dependence.
  """
  p_values = np.asarray(p_values, float)
  if np.any((p_values < 0) | (p_values > 1)) or np.any(np.isnan(p_values)):
    raise InputError("Holm's correction got a p-value outside [0, 1].")
  order = np.argsort(p_values, kind="stable")
  steps = np.minimum(1.0, np.arange(len(p_values), 0, -1) * p_values[order])
  adjusted = np.empty(len(p_values))
  adjusted[order] = np.maximum.accumulate(steps)
  return adjusted


def _by_prompt(values):
  return values.reshape(len(values), -1).mean(axis=1)
