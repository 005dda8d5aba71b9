"""Equivalences of outputs, by which different outputs are counted.

An equivalence is a function from one prompt's outputs to a label each, with equal labels for one class.
"""

from collections.abc import Hashable
from collections.abc import Sequence

import numpy as np

from qempo_jax.rewards.normal_form import normal_form


def exact(outputs: Sequence[Hashable]) -> np.ndarray:
  """[outputs] labels, equal for outputs that are equal to the last character."""
  seen: dict = {}
  return np.array([seen.setdefault(output, len(seen)) for output in outputs], np.int64)


def normalised(outputs: Sequence[str]) -> np.ndarray:
  """[outputs] labels, equal for outputs with one `normal_form`."""
  return exact([normal_form(output) for output in outputs])
