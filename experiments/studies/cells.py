"""Cells of the studies' Markdown tables: a method's name, and a mean with its interval."""

import numpy as np

from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation.intervals import Interval


def label(method: str) -> str:
  """Returns the method's display name."""
  return frontier_page.LABELS.get(method, method)


def interval(value: Interval, digits: int = 2) -> str:
  """Formats mean and bounds; the mean alone if there are no bounds."""
  shown = [f"{round(float(number), digits) + 0.0:.{digits}f}" for number in value if np.isfinite(number)]  # no -0.00
  return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else shown[0]
