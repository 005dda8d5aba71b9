"""Evaluation of a reward model on held-out pairs: accuracy with its interval, calibration, length bias."""

from typing import Any

import numpy as np

from qempo_jax.evaluation.intervals import Interval

_LEVEL, _DRAWS = 0.95, 10_000
_SHORT = 8  # Fewest prompts for a bootstrap over them.


def pair_report(scores: np.ndarray, lengths: np.ndarray, prompts: np.ndarray, *, seed: int) -> dict[str, Any]:
  """Figures of one set of pairs, JSON-able.

  Args:
    scores: [N, 2] of the chosen and the rejected responses, reward units.
    lengths: [N, 2] tokens of the chosen and the rejected responses.
    prompts: [N] prompt of each pair.
    seed: seed of the bootstrap.

  Returns:
    `accuracy` (share of pairs whose chosen response scores higher, half for a tie) with `accuracy_interval` (95 %,
    percentile bootstrap over prompts) and `accuracy_wilson` (95 %, as if pairs were independent); `margin` (mean,
    standard deviation, quantiles); `calibration`; `length` (see `length_bias`); `log_loss` of sigmoid(margin), nats.
  """
  margins = scores[:, 0] - scores[:, 1]
  right = np.where(margins == 0, 0.5, margins > 0)
  interval = cluster_interval(right, prompts, seed=seed)
  quantiles = np.quantile(margins, [0.05, 0.25, 0.5, 0.75, 0.95])
  return {
    "pairs": len(margins),
    "prompts": len(np.unique(prompts)),
    "accuracy": interval.mean,
    "accuracy_interval": [interval.low, interval.high],
    "accuracy_wilson": list(wilson(float(right.sum()), len(right))[1:]),
    "log_loss": float(np.mean(np.logaddexp(0, -margins))),
    "margin": {
      "mean": float(margins.mean()),
      "std": float(margins.std()),
      "quantiles_5_25_50_75_95": [float(value) for value in quantiles],
    },
    "calibration": calibration(margins),
    "length": length_bias(scores, lengths, right, prompts, seed=seed),
  }


def cluster_interval(values: np.ndarray, clusters: np.ndarray, *, seed: int) -> Interval:
  """Mean over pairs with a percentile interval from resampling whole clusters (prompts), 95 %.

  Clusters may be of unequal size; each draw's mean is sum / count over the drawn clusters. Bounds are NaN with fewer
  than 8 clusters.
  """
  _, cluster = np.unique(clusters, return_inverse=True)
  sums, counts = np.bincount(cluster, weights=values), np.bincount(cluster)
  mean = float(np.mean(values))
  if len(sums) < _SHORT:
    return Interval(mean, np.nan, np.nan)
  drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
  means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
  low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
  return Interval(mean, float(low), float(high))


def wilson(right: float, count: int) -> Interval:
  """The share right / count with Wilson's score interval, 95 % (JASA 22, 1927)."""
  z = 1.959963984540054
  share, spread = right / count, z * z / count
  centre = (share + spread / 2) / (1 + spread)
  half = z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
  return Interval(share, float(centre - half), float(centre + half))


def calibration(margins: np.ndarray, *, bins: int = 10) -> dict[str, Any]:
  """Stated probability that the higher score is right, sigmoid(|margin|), against the observed share.

  Returns:
    `expected_accuracy`, `error` (expected calibration error: mean over pairs of |share right - stated|, by bins of
    equally many pairs) and the bins: stated, right, pairs.
  """
  stated = 1 / (1 + np.exp(-np.abs(margins)))
  right = np.where(margins == 0, 0.5, margins > 0)
  parts = np.array_split(np.argsort(stated, kind="stable"), min(bins, len(margins)))
  rows = [(float(stated[part].mean()), float(right[part].mean()), len(part)) for part in parts]
  return {
    "expected_accuracy": float(stated.mean()),
    "error": sum(abs(expected - observed) * count for expected, observed, count in rows) / len(margins),
    "bins": [{"stated": expected, "right": observed, "pairs": count} for expected, observed, count in rows],
  }


def length_bias(scores, lengths, right, prompts, *, seed: int) -> dict[str, Any]:
  """Dependence of scores on length, and accuracy where length favours the wrong response.

  Returns:
    `longer_is_chosen` (the accuracy of always choosing the longer response, half for equal lengths); Pearson's
    `score_correlation` of score and tokens over all responses, and `margin_correlation` of the differences;
    `accuracy_chosen_shorter` and `accuracy_chosen_longer` with intervals over prompts, None without such pairs.
  """
  gap = lengths[:, 0] - lengths[:, 1]

  def part(chosen):
    if not chosen.any():
      return None
    interval = cluster_interval(right[chosen], prompts[chosen], seed=seed)
    return {"pairs": int(chosen.sum()), "accuracy": interval.mean, "interval": [interval.low, interval.high]}

  return {
    "longer_is_chosen": float(np.mean(np.where(gap == 0, 0.5, gap > 0))),
    "score_correlation": _correlation(scores.ravel(), lengths.ravel()),
    "margin_correlation": _correlation(scores[:, 0] - scores[:, 1], gap),
    "accuracy_chosen_shorter": part(gap < 0),
    "accuracy_chosen_longer": part(gap > 0),
  }


def _correlation(a, b) -> float | None:
  if np.std(a) == 0 or np.std(b) == 0:
    return None
  return float(np.corrcoef(a, b)[0, 1])
