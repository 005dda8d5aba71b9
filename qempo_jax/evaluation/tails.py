"""Quantiles in the tail of Monte-Carlo draws that never exceed the allotted error."""

import math

import numpy as np

from qempo_jax.errors import InputError

_LEAST_IN_TAIL = 30  # Expected number of draws beyond the quantile.
_RISK = 1e-4  # Probability, over seeds, that the quantile is on the wrong side of the true one.


def draws_for(error: float, num_draws: int) -> int:
  """At least `num_draws`, and enough for 30 expected draws in a tail of probability `error`.

  Raises:
    InputError: the error is not between 0 and 1.
  """
  if not 0 < error < 1:
    raise InputError(f"A bound's level is {1 - error:g}: it must lie between 0 and 1.")
  return max(num_draws, math.ceil(_LEAST_IN_TAIL / error))


def rank(error: float, num_draws: int) -> int:
  """Greatest k with P(U_(k) > error) <= 1e-4, U_(k) the k-th smallest of `num_draws` uniform draws.

  P(U_(k) > error) = P(Binomial(num_draws, error) < k).
  """
  from scipy import special

  low, high = 0, num_draws  # The probability, betaincc(k, n - k + 1, p), grows with k: bisection.
  while low < high:
    middle = (low + high + 1) // 2
    if special.betaincc(middle, num_draws - middle + 1, error) <= _RISK:
      low = middle
    else:
      high = middle - 1
  return low


def low_quantile(draws: np.ndarray, error: float) -> float:
  """An order statistic at or below the draws' `error` quantile, except for one seed in 10,000.

  Its error is Beta(k, draws - k + 1) over seeds, of mean k / (draws + 1) < error. An empirical quantile instead has an
  error of about 1 / draws even if less is allotted.
  """
  k = rank(error, len(draws))
  return float(np.partition(draws, k - 1)[k - 1]) if k else -np.inf


def high_quantile(draws: np.ndarray, error: float) -> float:
  """An order statistic at or above the draws' 1 - `error` quantile; see `low_quantile`."""
  return -low_quantile(-np.asarray(draws), error)
