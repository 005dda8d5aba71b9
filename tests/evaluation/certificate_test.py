"""Certificates: verdicts, their error rate by simulation, and how many further samples they ask for."""

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import certificate

FLOOR = {"constraint": "reward", "bound": 0.85, "direction": "at least", "value_range": (0.0, 1.0)}


def _rewards(rng, probabilities, num_samples=16):
  return (rng.random((len(probabilities), num_samples)) < np.asarray(probabilities)[:, None]).astype(float)


@pytest.mark.parametrize(("quality", "verdict"), [(0.97, "MET"), (0.6, "NOT MET"), (0.86, "UNDECIDED")])
def test_verdict_of_a_floor(quality, verdict):
  values = _rewards(np.random.default_rng(0), np.full(60, quality))
  found = certificate.certify(values, **FLOOR)
  assert found.verdict == verdict
  assert found.one_sided_bound < found.estimate == values.mean() < found.opposite_bound
  assert (found.num_prompts, found.num_samples) == (60, 960)
  assert (found.further_samples is None) == (verdict != "UNDECIDED")


@pytest.mark.parametrize(("kl", "verdict"), [(2.0, "MET"), (4.0, "NOT MET"), (3.0, "UNDECIDED")])
def test_verdict_of_a_budget(kl, verdict):
  values = np.random.default_rng(1).normal(kl, 1.0, (40, 16))
  found = certificate.certify(values, constraint="kl", bound=3.0, direction="at most")
  assert found.verdict == verdict
  assert found.opposite_bound < found.estimate < found.one_sided_bound


_POPULATIONS = {
  "equal prompts": lambda rng, n: np.full(n, 0.85),
  "mildly unequal": lambda rng, n: rng.beta(8.5, 1.5, n),
  "very unequal": lambda rng, n: rng.beta(0.85, 0.15, n),
  "all or nothing": lambda rng, n: (rng.random(n) < 0.85).astype(float),
}


@pytest.mark.parametrize("population", list(_POPULATIONS))
@pytest.mark.parametrize("num_prompts", [10, 40])
def test_false_verdicts_at_the_floor_itself_are_below_the_nominal_rate(population, num_prompts):
  rng = np.random.default_rng(2)
  verdicts = [
    certificate.certify(_rewards(rng, _POPULATIONS[population](rng, num_prompts)), **FLOOR, num_draws=400).verdict
    for _ in range(600)
  ]
  assert verdicts.count("MET") / 600 <= 0.07  # 0.05 and 2.2 standard errors of the simulation
  assert verdicts.count("NOT MET") / 600 <= 0.07


def test_false_met_rate_of_a_percentile_budget_is_near_the_nominal_rate():
  rng, wrong = np.random.default_rng(3), 0
  for trial in range(300):
    values = rng.normal(3.0, 1.0, (30, 1)) + rng.normal(size=(30, 8))
    found = certificate.certify(values, constraint="kl", bound=3.0, direction="at most", num_draws=400, seed=trial)
    wrong += found.verdict == "MET"
  assert wrong / 300 <= 0.08


def test_a_clear_margin_is_usually_met():
  rng = np.random.default_rng(4)
  samples = [_rewards(rng, rng.beta(19, 1, 60)) for _ in range(50)]
  verdicts = [certificate.certify(values, **FLOOR, num_draws=400).verdict for values in samples]
  assert verdicts.count("MET") >= 45


def test_few_perfect_prompts_cannot_certify_a_high_floor_but_enough_can():
  assert certificate.certify(np.ones((18, 64)), **FLOOR).verdict == "UNDECIDED"
  assert certificate.certify(np.ones((21, 64)), **FLOOR).verdict == "MET"


def test_the_samples_asked_for_decide_when_the_estimate_stays():
  rng = np.random.default_rng(5)
  values = _rewards(rng, np.full(40, 0.88))
  found = certificate.certify(values, **FLOOR)
  assert found.verdict == "UNDECIDED" and found.further_samples == 16 * found.further_prompts
  more = values[rng.permutation(np.arange(40 + found.further_prompts) % 40)]
  assert certificate.certify(more, **FLOOR).verdict == "MET"


def test_an_estimate_at_the_bound_promises_no_number():
  values = np.tile([0.0, 1.0], (20, 8))
  found = certificate.certify(values, constraint="reward", bound=0.5, direction="at least", value_range=(0, 1))
  assert (found.verdict, found.further_prompts, found.further_samples) == ("UNDECIDED", None, None)
  assert "too close" in certificate.in_words(found)


def test_a_single_sample_without_a_range_decides_nothing():
  found = certificate.certify(np.array([[5.0]]), constraint="kl", bound=3.0, direction="at most")
  assert found.verdict == "UNDECIDED"


@pytest.mark.parametrize(
  ("bound", "phrase"), [(0.5, "95% lower bound 0."), (0.95, "95% upper bound 0."), (0.8, "95% bounds 0.")]
)
def test_words_give_the_bound_that_decides(bound, phrase):
  values = _rewards(np.random.default_rng(6), np.full(40, 0.8))
  words = certificate.in_words(certificate.certify(values, **FLOOR | {"bound": bound}))
  assert phrase in words and words.count("0.") >= 3


def test_words_state_verdict_estimate_bound_and_counts():
  words = certificate.in_words(certificate.certify(np.ones((30, 4)), **FLOOR))
  assert words.startswith("Reward at least 0.85: MET. Estimate 1.000, one-sided 95% lower bound 0.90")
  assert words.endswith("from 120 samples of 30 prompts.")


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match=r"\[prompts, samples\]"):
    certificate.certify(np.ones(3), **FLOOR)
  for values in (np.array([[0.5, 1.5]]), -np.array([[0.5, 1.5]])):
    with pytest.raises(
      InputError, match=f"reward has the value {values[0, 0] if values[0, 0] < 0 else 1.5:g}, outside"
    ):
      certificate.certify(values, **FLOOR)
  with pytest.raises(InputError, match="not finite"):
    certificate.certify(np.array([[np.nan]]), constraint="kl", bound=0.5, direction="at most")
  with pytest.raises(ValueError, match="at least"):
    certificate.certify(np.ones((3, 2)), constraint="reward", bound=0.5, direction=">=")
