"""The cluster bootstrap: its spread against formulas, its coverage by simulation, and pairing."""

import numpy as np
import pytest
from scipy import stats

from qempo_jax.evaluation import intervals


def _prompts(rng, num_prompts, num_samples, mean=0.0, between=1.0, within=1.0):
  centres = rng.normal(mean, between, (num_prompts, 1))
  return centres + within * rng.normal(size=(num_prompts, num_samples))


def test_spread_of_both_stages_matches_the_formula():
  values = _prompts(np.random.default_rng(0), 30, 10)
  draws = intervals.bootstrap_means(values, num_draws=20_000, seed=0)
  expected = values.mean(axis=1).var() / 30 + values.var(axis=1).mean() / 300
  assert draws.var() == pytest.approx(expected, rel=0.05)
  assert draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_spread_over_prompts_alone_matches_the_formula():
  values = np.random.default_rng(0).normal(size=40)
  draws = intervals.bootstrap_means(values, num_draws=20_000, seed=0)
  assert draws.var() == pytest.approx(values.var() / 40, rel=0.05)


def test_a_naive_interval_over_samples_would_be_far_too_narrow():
  values = _prompts(np.random.default_rng(1), 40, 50, within=0.1)
  interval = intervals.mean_interval(values)
  naive = intervals.mean_interval(values.ravel())
  assert interval.high - interval.low > 4 * (naive.high - naive.low)


@pytest.mark.parametrize(("two_stage", "least", "most"), [(True, 0.93, 0.995), (False, 0.90, 0.975)])
def test_coverage_by_simulation(two_stage, least, most):
  rng, covered = np.random.default_rng(2), 0
  for trial in range(400):
    values = _prompts(rng, 30, 6, mean=0.3)
    found = intervals.mean_interval(values if two_stage else values.mean(axis=1), num_draws=400, seed=trial)
    covered += found.low <= 0.3 <= found.high
  assert least <= covered / 400 <= most


def test_one_sided_bounds_are_the_quantiles_of_the_same_draws():
  values = _prompts(np.random.default_rng(3), 20, 5)
  draws = intervals.bootstrap_means(values, num_draws=2000, seed=7)
  assert intervals.lower_bound(values, level=0.9, seed=7) == pytest.approx(np.quantile(draws, 0.1))
  assert intervals.upper_bound(values, level=0.9, seed=7) == pytest.approx(np.quantile(draws, 0.9))
  interval = intervals.mean_interval(values, level=0.8, seed=7)
  assert interval == pytest.approx((values.mean(), np.quantile(draws, 0.1), np.quantile(draws, 0.9)))


def test_equal_seeds_repeat_and_other_seeds_differ():
  values = _prompts(np.random.default_rng(3), 20, 5)
  assert intervals.mean_interval(values, seed=1) == intervals.mean_interval(values, seed=1)
  assert intervals.mean_interval(values, seed=1) != intervals.mean_interval(values, seed=2)


@pytest.mark.parametrize(("successes", "total"), [(0, 12), (5, 12), (11, 12), (12, 12), (70, 76)])
def test_bounded_bounds_of_zeros_and_ones_are_clopper_pearson(successes, total):
  values = np.array([1.0] * successes + [0.0] * (total - successes))
  low, high = stats.binomtest(successes, total).proportion_ci(0.9, method="exact")
  assert intervals.bounded_lower_bound(values, lowest=0, num_draws=100_000) == pytest.approx(low, abs=4e-3)
  assert intervals.bounded_upper_bound(values, highest=1, num_draws=100_000) == pytest.approx(high, abs=4e-3)


def test_pairing_removes_what_the_prompts_share():
  rng = np.random.default_rng(4)
  shared = rng.normal(10, 3, (40, 1))
  baseline, values = shared + 0.1 * rng.normal(size=(40, 8)), shared + 0.5 + 0.1 * rng.normal(size=(40, 12))
  found = intervals.paired_difference(values, baseline)
  assert found.low < 0.5 < found.high
  assert found.high - found.low < 0.1
  unpaired = intervals.paired_difference(values[::-1], baseline)
  assert unpaired.high - unpaired.low > 1


def test_ratio_covers_the_truth_and_names_a_zero_baseline():
  rng = np.random.default_rng(5)
  baseline = rng.gamma(20, 0.1, 50)
  found = intervals.paired_ratio(baseline * 3 * rng.gamma(100, 0.01, 50), baseline)
  assert found.low < 3 < found.high and found.high - found.low < 0.5
  assert all(np.isnan(intervals.paired_ratio(baseline, np.zeros(50))))
  sometimes_zero = intervals.paired_ratio(np.ones(3), np.array([0.0, 0.0, 1.0]))
  assert sometimes_zero.high == np.inf and sometimes_zero.mean == pytest.approx(3)


def test_one_prompt_has_no_interval_whatever_its_samples():
  one, other = np.array([[0.0, 1.0, 1.0]]), np.array([[0.0, 0.0, 1.0]])
  for found in (
    intervals.mean_interval(one), intervals.paired_difference(one, other), intervals.paired_ratio(one, other),
    intervals.paired_ratio(one.mean(1), other.mean(1)),
  ):  # fmt: skip
    assert np.isfinite(found.mean) and np.isnan([found.low, found.high]).all()


def test_one_value_has_no_interval():
  for values in ([2.0], [[2.0]]):
    found = intervals.mean_interval(np.array(values))
    assert found.mean == 2.0 and np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros(()), np.array([1.0, np.nan]), np.zeros((2, 2, 2))])
def test_bad_values_are_refused(values):
  with pytest.raises(ValueError):
    intervals.mean_interval(values)


def test_bad_pairs_and_ranges_are_refused():
  with pytest.raises(ValueError, match="3 and 4"):
    intervals.paired_difference(np.ones(3), np.ones(4))
  with pytest.raises(ValueError, match="below the least"):
    intervals.bounded_lower_bound(np.array([-0.1, 1.0]), lowest=0)


def test_large_data_in_blocks_gives_what_one_block_gives(monkeypatch):
  values = _prompts(np.random.default_rng(6), 10, 4)
  whole = intervals.bootstrap_means(values, num_draws=100, seed=0)
  monkeypatch.setattr(intervals, "_CHUNK", 40)
  np.testing.assert_allclose(intervals.bootstrap_means(values, num_draws=100, seed=0), whole)


def test_a_shared_baseline_gives_what_each_comparison_gives_alone():
  rng = np.random.default_rng(7)
  baseline, levels = _prompts(rng, 12, 5), (0.95, 0.99)
  shared = intervals.PairedDraws(baseline, num_draws=200, seed=3)
  for values in (_prompts(rng, 12, 5), _prompts(rng, 12, 5), _prompts(rng, 12, 7), rng.normal(size=12)):
    found = shared.differences(values, levels=levels)
    assert found == [intervals.paired_difference(values, baseline, level=q, num_draws=200, seed=3) for q in levels]
