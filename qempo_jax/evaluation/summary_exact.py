"""Exact figures of one method on one split, beside those that its samples give: see `exact_answers`."""

from collections.abc import Mapping

import numpy as np

from qempo_jax.evaluation import summary_figures
from qempo_jax.evaluation.rows import SplitSamples

# Alarms: a difference of so many standard errors, and this share of right samples that are not listed.
SURELY = 4.0
UNLISTED = 0.05
_TOLERANCE = 1e-3  # of a probability: branches left out, and rounding in half precision

_NEEDED = {"acceptable", "effective_answers", "entropy_accept", "entropy_right", "entropy_wrong", "unlisted"}


def exact_figures(samples: SplitSamples, figures: Mapping[str, np.ndarray], settings) -> dict:
  """Means over prompts with intervals; empty where the samples carry no exact figures.

  Besides the exact figures: `entropy`, the sum of its three parts (the wrong responses' from samples); `sampled`, the same
  figures from the samples alone; `difference`, sampled less exact, whose expectation is 0: of the listed right responses, and of
  the entropy; `standard_errors`, the first of the two over its standard error sqrt(P (1 - P) / n), which is known.
  """
  if not samples.exact.keys() >= _NEEDED:
    return {}
  interval = lambda values: summary_figures.interval(values, settings)._asdict()
  exact = {name: values.mean(axis=1) for name, values in samples.exact.items()}
  exact["entropy"] = exact["entropy_accept"] + exact["entropy_right"] + exact["entropy_wrong"]
  shape = samples.figures["reward"].shape
  given = np.reshape([[[name is not None for name in cell] for cell in line] for line in samples.answers], shape)
  drawn = f"distinct@{shape[2]}"
  sampled = {
    "acceptable": given.mean(axis=(1, 2)),
    "effective_answers": figures["effective_answers"].mean(axis=1),
    "entropy": figures["entropy"].mean(axis=1),
  } | ({drawn: figures["distinct_answers"].mean(axis=1)} if drawn in exact else {})
  right = samples.exact["acceptable"]
  error = np.sqrt(np.mean(right * (1 - right)) / (right.size * shape[2])) + _TOLERANCE
  difference = {
    "acceptable": sampled["acceptable"] - exact["unlisted"] - exact["acceptable"],
    "entropy": sampled["entropy"] - exact["entropy"],
  }
  return {name: interval(values) for name, values in exact.items()} | {
    "sampled": {name: interval(values) for name, values in sampled.items()},
    "difference": {name: interval(values) for name, values in difference.items()},
    "standard_errors": float(difference["acceptable"].mean() / error),
  }
