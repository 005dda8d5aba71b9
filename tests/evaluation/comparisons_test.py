"""Paired comparisons: the sign-flip test, Holm's correction, and the rate of false findings by simulation."""

import json
import pathlib

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import intervals

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))


def test_the_percentile_interval_is_that_of_scipy():
  case = GOLDEN["bootstrap"]
  found = intervals.mean_interval(np.array(case["values"]), num_draws=50_000)
  assert (found.low, found.high) == pytest.approx((case["low"], case["high"]), abs=0.01)


def test_the_sign_flip_test_is_scipys_permutation_test_and_counted_by_hand():
  case = GOLDEN["others"]["sign_flip"]
  assert comparisons.sign_flip_p_value(np.array(case["differences"])) == pytest.approx(case["p_value"], abs=1e-12)
  assert comparisons.sign_flip_p_value(np.array([1.0, 2.0, 3.0])) == 2 / 8
  assert comparisons.sign_flip_p_value(np.array([1.0, 2.0, -3.0])) == 1


def test_drawn_patterns_agree_with_all_of_them(monkeypatch):
  differences = np.random.default_rng(0).normal(0.4, 1, 12)
  exact = comparisons.sign_flip_p_value(differences)
  monkeypatch.setattr(comparisons, "_EXACT_PROMPTS", 0)
  assert comparisons.sign_flip_p_value(differences, num_draws=40_000) == pytest.approx(exact, abs=0.01)


def test_holm_by_hand():
  case = GOLDEN["others"]["holm"]
  np.testing.assert_allclose(comparisons.holm(np.array(case["p_values"])), case["adjusted"], rtol=1e-12)
  assert comparisons.holm(np.zeros(0)).shape == (0,)


def test_a_real_difference_is_found_and_a_missing_one_is_not():
  rng = np.random.default_rng(1)
  base = rng.normal(5, 3, (40, 6))
  figures = {"base": base, "better": base + 0.5 + 0.3 * rng.normal(size=base.shape), "same": base[:, ::-1]}
  found = comparisons.compare_with("base", figures)
  assert found["better"].different and not found["same"].different
  assert found["better"].difference.low > 0
  assert found["better"].simultaneous.low < found["better"].difference.low
  assert found["better"].adjusted_p_value >= found["better"].p_value


def test_false_findings_in_the_family_stay_at_the_level():
  rng, false = np.random.default_rng(2), 0
  for trial in range(400):
    shared = rng.normal(size=20)
    figures = {name: shared + rng.exponential(size=20) for name in "abcde"}
    others = [figures[name] - figures["a"] for name in "bcde"]
    p_values = [comparisons.sign_flip_p_value(other, num_draws=400, seed=trial) for other in others]
    false += comparisons.holm(np.array(p_values)).min() <= 0.05
  assert false / 400 <= 0.075  # 0.05 and 2.3 standard errors of the simulation


def test_bad_comparisons_are_refused():
  for call in (
    lambda: comparisons.compare_with("x", {"a": np.ones(3)}),
    lambda: comparisons.compare_with("a", {"a": np.ones(3), "b": np.ones(4)}),
    lambda: comparisons.holm(np.array([1.2])),
  ):
    with pytest.raises(InputError):
      call()
