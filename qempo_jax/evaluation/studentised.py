"""One-sided bounds of a mean over prompts with an unknown range, such as that of a KL divergence.

Percentile bounds fail with few prompts and with a long tail on the side of the claim: a few prompts with a large KL are
easily missing from the sample. This bootstrap is of the t statistic, which sees that tail (Hall, "Theoretical
Comparison of Bootstrap Confidence Intervals", Annals of Statistics, 1988). The wider of its bound and Student's counts.
"""

import numpy as np

from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import tails


def lower_bound(
  values: np.ndarray,
  *,
  level: float = 0.95,
  num_draws: int = 10_000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> float:
  """One-sided lower confidence bound of the mean over prompts.

    mean - max(quantile_level(t*), t_{n-1, level}) s / sqrt(n),   t* = (mean* - mean) sqrt(n) / s*,

  with s the standard deviation over prompts, and starred figures of resampled prompts. Without a known range no bound
  can hold for every tail (Bahadur & Savage, 1956). In simulations (1,000 each) the 95 % upper bound was wrong in 3-4 %
  of cases for normal prompts at 5-15 prompts and 5 % at 40; for exponential ones in 10 % at 5-8, 9 % at 15 and 6 % at
  40; for log-normal ones with deviation 1 in 13-15 % at 5-8, 11 % at 15 and 7 % at 40, where percentile bounds were
  wrong in 27 %, 20 % and 11 %.

  With families of prompts n counts families and s / sqrt(n) is `clusters.standard_error`, which is too large for two
  crossed keys; t has the fewest families of a key minus 1 degrees of freedom.

  Args:
    values: [prompts, samples] or [prompts]; samples are averaged within their prompt.
    level: confidence level.
    num_draws: least number of resamples; see `tails.draws_for`.
    seed: seed of the resampling.
    clusters: families of the prompts; None: independent prompts.

  Returns:
    The bound; -inf for a single prompt or family, the mean if all are equal.
  """
  from scipy import special

  values = np.asarray(values, float)
  means = values.reshape(len(values), -1).mean(axis=1)
  clusters = families.checked(clusters, len(means)) or families.of({"prompt": range(len(means))})
  top, bottom = clusters.table(means), clusters.table(np.ones_like(means))
  estimate, error, freedom = families.standard_error(top, bottom)
  if freedom < 1:
    return -np.inf
  tiny = 1e-12 * np.abs(means).max()
  if error <= tiny:
    return float(means.mean())
  size = tails.draws_for(1 - level, num_draws)
  ratios = []
  for above, below, variance in families.resampled(top, bottom, num_draws=size, seed=seed):
    # A draw without families has no mean, and one of a single repeated family no variance: its t is infinite.
    shifts = np.divide(above, below, out=np.full_like(above, np.inf), where=below > 0) - estimate
    flat = (variance <= tiny**2) | (below <= 0)
    infinite = np.select([shifts > tiny, shifts < -tiny], [np.inf, -np.inf], 0.0)
    ratios.append(np.where(flat, infinite, shifts / np.where(flat, 1, np.sqrt(variance))))
  quantile = max(tails.high_quantile(np.concatenate(ratios), 1 - level), special.stdtrit(freedom, level))
  return float(estimate - quantile * error)


def upper_bound(values: np.ndarray, **settings) -> float:
  """One-sided upper confidence bound of the mean over prompts; see `lower_bound`."""
  return -lower_bound(-np.asarray(values, float), **settings)
