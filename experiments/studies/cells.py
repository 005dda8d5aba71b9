"""Cells of the studies' Markdown tables: a method's name, and a mean with its interval."""

import numpy as np

from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation.intervals import Interval


def label(method: str) -> str:
  """Returns the method's display name."""
  return frontier_page.LABELS.get(method, method)


def interval(value: Interval) -> str:
  """Formats mean and bounds with two decimals; the mean alone if there are no bounds."""
  if not np.isfinite(value.low):
    return f"{value.mean:.2f}"
  return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]".replace("-0.00", "0.00")
