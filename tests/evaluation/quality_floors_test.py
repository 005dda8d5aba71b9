"""Relative floors, looks at growing data, studentised bounds and entropy gains, their error rates by simulation."""

import numpy as np
import pytest
from scipy import stats

from qempo_jax.errors import InputError
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import quality_floors
from qempo_jax.evaluation import studentised

RANGE = {"value_range": (0.0, 1.0), "num_draws": 400}


def _rewards(rng, chances, num_samples=8):
  return (rng.random((len(chances), num_samples)) < np.asarray(chances)[:, None]).astype(float)


def test_the_three_floors():
  rng = np.random.default_rng(0)
  chances = rng.beta(8, 3, 80)
  reference, policy = _rewards(rng, chances, 20), _rewards(rng, chances + (1 - chances) / 2, 20)
  absolute = quality_floors.certify_floor(policy, kind="absolute", amount=0.6, **RANGE)
  quantile = quality_floors.certify_floor(
    policy, kind="reference quantile", amount=0.1, reference_rewards=reference, **RANGE
  )
  minus = quality_floors.certify_floor(
    policy, kind="reference minus", amount=0.05, reference_rewards=reference, **RANGE
  )
  assert absolute.verdict == quantile.verdict == minus.verdict == "MET"
  assert (absolute.bound, quantile.bound, minus.bound) == (0.6, np.quantile(reference, 0.1), -0.05)
  assert minus.estimate == pytest.approx(policy.mean() - reference.mean())
  assert minus.num_samples == 1600 and minus.constraint == "reward over reference"
  worse = quality_floors.certify_floor(reference, kind="reference minus", amount=0.0, reference_rewards=policy, **RANGE)
  assert worse.verdict != "MET" and worse.estimate < 0


@pytest.mark.parametrize("num_prompts", [6, 40])
def test_false_met_rate_of_a_floor_relative_to_the_reference(num_prompts):
  rng, met = np.random.default_rng(1), 0
  for trial in range(400):
    chances = rng.beta(2, 0.5, num_prompts)  # mean 0.8, skewed; the policy is exactly 0.1 x chance worse: 0.08
    found = quality_floors.certify_floor(
      _rewards(rng, 0.9 * chances), kind="reference minus", amount=0.08,
      reference_rewards=_rewards(rng, chances), seed=trial, **RANGE,
    )  # fmt: skip
    met += found.verdict == "MET"
  assert met / 400 <= 0.05 + 2.2 * np.sqrt(0.05 * 0.95 / 400)


def _looks(rng, planned, corrected, trial):
  """True if any of five looks at a growing sample says MET, with the mean at the floor."""
  values = _rewards(rng, np.full(200, 0.5), num_samples=1)
  for look, count in enumerate(range(40, 201, 40), start=1):
    spending = {"look": look, "planned_looks": planned} if corrected else {}
    found = certificate.certify(
      values[:count], constraint="reward", bound=0.5, direction="at least", seed=trial, **RANGE, **spending
    )
    if found.verdict == "MET":
      return True
  return False


@pytest.mark.parametrize("planned", [5, None])
def test_repeated_looks_keep_the_level(planned):
  rng = np.random.default_rng(2)
  met = np.mean([_looks(rng, planned, True, trial) for trial in range(300)])
  assert met <= 0.05 + 2.2 * np.sqrt(0.05 * 0.95 / 300)


def test_uncorrected_looks_do_not():
  rng = np.random.default_rng(2)
  assert np.mean([_looks(rng, None, False, trial) for trial in range(300)]) > 0.08


def test_spent_errors_sum_to_the_nominal_one():
  for planned, looks in ((4, 4), (None, 100_000)):
    spent = sum(1 - certificate.level_of_look(0.95, look=k, planned_looks=planned) for k in range(1, looks + 1))
    assert spent == pytest.approx(0.05, rel=1e-4) and spent <= 0.05 + 1e-9
  with pytest.raises(InputError, match="Look 3 of 2"):
    certificate.level_of_look(0.95, look=3, planned_looks=2)


def test_words_name_the_look():
  values = _rewards(np.random.default_rng(3), np.full(40, 0.9))
  found = certificate.certify(
    values, constraint="reward", bound=0.5, direction="at least", look=2, planned_looks=4, **RANGE
  )
  assert "98.75%" in certificate.in_words(found) and "Look 2; 95% over all looks." in certificate.in_words(found)


_TAILS = {"normal": lambda rng, n: rng.normal(3, 1, n), "exponential": lambda rng, n: 2 + rng.exponential(1, n)}


@pytest.mark.parametrize(
  ("tail", "num_prompts", "most"), [("normal", 8, 0.05), ("normal", 40, 0.06), ("exponential", 40, 0.07)]
)
def test_false_met_rate_of_a_studentised_budget(tail, num_prompts, most):
  rng, wrong, percentile = np.random.default_rng(4), 0, 0
  for trial in range(400):
    values = _TAILS[tail](rng, num_prompts)[:, None] + 0.5 * rng.normal(size=(num_prompts, 6))
    wrong += studentised.upper_bound(values, num_draws=400, seed=trial) <= 3
    percentile += intervals.upper_bound(values.mean(axis=1), num_draws=400, seed=trial) <= 3
  assert wrong / 400 <= most + 2.2 * np.sqrt(0.05 * 0.95 / 400)
  assert wrong < percentile


def test_a_studentised_bound_is_never_nearer_than_students():
  values = np.array([0.0, 1.0] * 8)  # of two values alone, whose resampled t stays below Student's quantile here
  students = 0.5 + stats.t.ppf(0.95, 15) * values.std(ddof=1) / 4
  assert studentised.upper_bound(values, level=0.95) == pytest.approx(students)


def test_studentised_bounds_of_no_spread_and_one_prompt():
  assert studentised.lower_bound(np.full((5, 2), 2.0)) == studentised.upper_bound(np.full(5, 2.0)) == 2
  assert studentised.upper_bound(np.ones((1, 4))) == np.inf
  found = certificate.certify(np.ones((1, 4)), constraint="kl", bound=3.0, direction="at most")
  assert found.verdict == "UNDECIDED" and found.further_prompts is None


def test_entropy_gains_are_paired_and_hold_together():
  rng = np.random.default_rng(5)
  base = rng.normal(20, 5, (30, 1))
  policy, rlhf = base + 3 + 0.2 * rng.normal(size=(30, 8)), base - 6 + 0.2 * rng.normal(size=(30, 8))
  found = quality_floors.entropy_gains(policy, {"reference": base + np.zeros((30, 8)), "rlhf": rlhf})
  assert found["reference"].low < 3 < found["reference"].high < 4
  assert found["rlhf"].low < 9 < found["rlhf"].high
  alone = quality_floors.entropy_gains(policy, {"rlhf": rlhf})["rlhf"]
  assert alone.high - alone.low < found["rlhf"].high - found["rlhf"].low


def test_floors_without_what_they_need_are_refused():
  ones = np.ones((4, 2))
  for settings in (
    {"kind": "reference minus", "amount": 0.1},
    {"kind": "reference minus", "amount": 0.1, "reference_rewards": np.ones((3, 2))},
    {"kind": "reference quantile", "amount": 1.5, "reference_rewards": ones},
    {"kind": "relative", "amount": 0.1},
  ):
    with pytest.raises(InputError):
      quality_floors.certify_floor(ones, **settings, **RANGE)
