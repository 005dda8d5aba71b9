"""Tail quantiles: the error spent at any look is at most the error allotted, against the exact binomial bound."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from qempo_jax.errors import InputError
from qempo_jax.evaluation import bounded
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import tails


def _allotted(look):
  return 1 - certificate.level_of_look(0.95, look=look, planned_looks=None)


@pytest.mark.parametrize("look", range(1, 51))
def test_the_rank_spends_at_most_the_error_allotted(look):
  error = _allotted(look)
  count = tails.draws_for(error, 10_000)
  k = tails.rank(error, count)
  assert k >= 10 and stats.beta.sf(error, k, count - k + 1) <= 1e-4 < stats.beta.sf(error, k + 1, count - k)


def test_the_published_table_is_what_looks_spend():
  page = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
  shares = []
  for look in range(1, 51):
    error = _allotted(look)
    count = tails.draws_for(error, 10_000)
    k = tails.rank(error, count)
    most = stats.beta.ppf(1 - 1e-4, k, count - k + 1)  # the k-th smallest of uniform draws
    shares.append(most / error)
    if look in (1, 5, 10, 20, 50):
      assert f"| {look} | {error:.1e} | {count:,} | {k / (count + 1):.1e} | {most:.1e} |\n" in page
  assert f"{max(shares):.3f} of what the look is allotted" in page


@pytest.mark.parametrize("look", range(1, 51))
def test_a_bound_of_zeros_and_ones_is_clopper_pearson_at_every_look(look):
  values, error = np.repeat([1.0, 0.0], [57, 3]), _allotted(look)
  found = certificate.certify(
    values[:, None],
    constraint="reward",
    bound=0.9,
    direction="at least",
    value_range=(0, 1),
    look=look,
    planned_looks=None,
  )
  assert stats.binom.sf(56, 60, found.one_sided_bound) <= error * (1 + 1e-6)
  assert found.one_sided_bound == pytest.approx(stats.beta.ppf(error, 57, 4), rel=1e-9)


@pytest.mark.parametrize("look", (1, 5, 20))
def test_drawn_bounds_spend_no_more_than_allotted(look):
  # Nearly 0 and 1, so that the quantile is drawn and still that of Clopper and Pearson.
  values, error = np.repeat([1.0, 1 - 1e-9, 0.0], [8, 1, 1]), _allotted(look)
  spent = [
    stats.binom.sf(8, 10, bounded.lower_bound(values, lowest=0, level=1 - error, num_draws=2000, seed=seed))
    for seed in range(20)
  ]
  assert max(spent) <= error and np.mean(spent) > 0.25 * error


def test_levels_outside_0_to_1_are_refused():
  for error in (0.0, 1.0, np.nan):
    with pytest.raises(InputError, match="between 0 and 1"):
      tails.draws_for(error, 100)
