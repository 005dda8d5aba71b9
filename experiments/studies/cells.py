"""Cells of the studies' Markdown tables: a mean with its interval; and the order of their rows."""

import numpy as np

from qempo_jax.evaluation.intervals import Interval
from qempo_jax.evaluation.rows import METHOD_LABELS


def place(method: str) -> int:
  """Returns the method's place in a table: by `METHOD_LABELS`, others last."""
  return [*METHOD_LABELS, method].index(method)


def interval(value: Interval, digits: int = 2) -> str:
  """Formats mean and bounds; the mean alone if there are no bounds."""
  shown = [f"{round(float(number), digits) + 0.0:.{digits}f}" for number in value if np.isfinite(number)]  # no -0.00
  return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else shown[0]
