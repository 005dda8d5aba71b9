"""One-sided confidence bounds of a mean over prompts for figures with a known range, such as a reward from 0 to 1."""

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import tails

_CHUNK = 1_000_000  # Weights in memory at once.


def lower_bound(
  values: np.ndarray,
  *,
  lowest: float,
  level: float = 0.95,
  num_draws: int = 100_000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> float:
  """One-sided lower bound of the mean over prompts of a figure that is never below `lowest`.

  It is a Bayesian bootstrap over the prompts and one more prompt at the worst value: the (1 - level) quantile of

    sum_i w_i x_i + w_0 lowest,    w ~ Dirichlet(1, ..., 1).

  Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable", 2005;
  Learned-Miller & Thomas, "A New Confidence Interval for the Mean of a Bounded Random Variable",
  https://arxiv.org/abs/1905.06208. They find no failure at any number of prompts; that it never fails is a conjecture.
  For values 0 and 1 it is the Clopper-Pearson bound. With n perfect prompts it is (1 - level)^(1/n), so a reward floor
  of 0.85 needs at least 19 prompts.

  With families of prompts i counts families, weighted by their sizes, and the worst family has the largest size. With
  two crossed keys a prompt's weight is w_r v_c, and a worst row and a worst column are added, which makes the bound
  low. n then counts families: 8 perfect ones have the bound 0.05^(1/8) = 0.69.

  Args:
    values: [prompts, samples] or [prompts]; samples are averaged within their prompt.
    lowest: least possible value.
    level: confidence level.
    num_draws: least number of weight draws; see `tails.draws_for`.
    seed: seed of the weights.
    clusters: families of the prompts; None: independent prompts.

  Returns:
    The bound. It is exact if all means but those at `lowest` are equal; else it fails by Monte-Carlo error in at most
    one of 10,000 seeds, see `tails.low_quantile`.

  Raises:
    InputError: a value is below `lowest`, or not finite.
  """
  values = np.asarray(values, float)
  if values.ndim not in (1, 2) or not values.size or not np.all(np.isfinite(values)):
    raise InputError(f"A bound needs finite numbers as [prompts] or [prompts, samples], got shape {values.shape}.")
  means = values.reshape(len(values), -1).mean(axis=1)
  if np.min(values) < lowest:
    raise InputError(
      f"A value of {np.min(values):g} is below the least possible value, {lowest:g}: give its true range."
    )
  if clusters is None:
    clusters = families.of({"prompt": range(len(means))})
  families.checked(clusters, len(means))
  top, bottom = clusters.table(means), clusters.table(np.ones_like(means))
  error = 1 - level
  exact = _exact(top, bottom, lowest, error) if len(clusters.keys) == 1 else None
  if exact is not None:
    return exact
  size = tails.draws_for(error, num_draws)
  rng = np.random.default_rng(seed)
  draws = (
    _one_way(top, bottom, lowest, size, rng) if len(clusters.keys) == 1 else _two_way(top, bottom, lowest, size, rng)
  )
  return tails.low_quantile(draws, error)


def upper_bound(values: np.ndarray, *, highest: float, **settings) -> float:
  """One-sided upper bound of the mean over prompts of a figure never above `highest`; see `lower_bound`."""
  if np.max(values) > highest:
    raise InputError(
      f"A value of {np.max(values):g} is above the greatest possible value, {highest:g}: give its true range."
    )
  return -lower_bound(-np.asarray(values, float), lowest=-highest, **settings)


def _exact(top, bottom, lowest, error):
  """Exact quantile if families have one size and one value besides `lowest`: the weight is Beta(k, n + 1 - k)."""
  from scipy import special

  means = top / bottom
  better = means > lowest
  count, best = int(better.sum()), means.max()
  if np.any(bottom != bottom[0, 0]) or (count and np.ptp(means[better]) > 0):
    return None
  return (
    float(lowest + (best - lowest) * special.betaincinv(count, len(means) + 1 - count, error))
    if count
    else float(lowest)
  )


def _one_way(top, bottom, lowest, num_draws, rng):
  """[draws]; equal families are merged, since the sum of their weights is Gamma(their number)."""
  largest = bottom.max()
  pairs = np.concatenate([np.stack([top[:, 0], bottom[:, 0]], axis=1), [[largest * lowest, largest]]])
  (above, below), counts = (column.T for column in np.unique(pairs, axis=0, return_counts=True))
  step = max(1, _CHUNK // len(counts))
  draws = np.empty(num_draws)
  for start in range(0, num_draws, step):
    size = min(step, num_draws - start)
    if np.all(counts == 1):
      weights = rng.standard_exponential((size, len(counts)))
    else:
      weights = rng.standard_gamma(counts, (size, len(counts)))
    draws[start : start + size] = (weights @ above) / (weights @ below)
  return draws


def _two_way(top, bottom, lowest, num_draws, rng):
  """[draws] with an added worst row and worst column, of the largest sizes in their columns and rows."""
  below = np.pad(bottom, ((0, 1), (0, 1)))
  below[-1, :-1], below[:-1, -1], below[-1, -1] = bottom.max(axis=0), bottom.max(axis=1), bottom.max()
  above = np.pad(top, ((0, 1), (0, 1)))
  above[-1], above[:, -1] = lowest * below[-1], lowest * below[:, -1]
  step = max(1, _CHUNK // sum(below.shape))
  draws = np.empty(num_draws)
  for start in range(0, num_draws, step):
    size = min(step, num_draws - start)
    rows, columns = (rng.standard_exponential((size, n)) for n in below.shape)
    draws[start : start + size] = ((rows @ above) * columns).sum(axis=1) / ((rows @ below) * columns).sum(axis=1)
  return draws
