"""What the studies' Markdown tables share: a method's name, and a mean with its interval."""

import numpy as np

from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation.intervals import Interval


def label(method: str) -> str:
  """The method's name as figures have it."""
  return frontier_page.LABELS.get(method, method)


def interval(value: Interval) -> str:
  """Mean and bounds with two decimals; the mean alone where there are no bounds."""
  if not np.isfinite(value.low):
    return f"{value.mean:.2f}"
  return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]".replace("-0.00", "0.00")
