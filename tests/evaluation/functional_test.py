"""Answer statistics of one prompt against hand-computed values."""

import math

import numpy as np
import pytest

from qempo_jax.evaluation import functional


def test_statistics_of_a_small_sample():
  found = functional.answer_statistics(["a", "b", "a", None, "c"], set_size=10)
  entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
  assert found[:3] == (5, 4, 3)
  assert found.coverage == pytest.approx(0.3)
  assert found.entropy == pytest.approx(entropy)
  assert found.effective_answers == pytest.approx(math.exp(entropy))
  assert found.entropy_miller_madow == pytest.approx(entropy + 2 / 8)


def test_uniform_answers_count_fully_and_a_collapsed_prompt_counts_one():
  assert functional.answer_statistics(list("abcd") * 3, set_size=4).effective_answers == pytest.approx(4)
  assert functional.answer_statistics(list("abcd") * 3, set_size=4).coverage == 1
  collapsed = functional.answer_statistics(["a"] * 9, set_size=4)
  assert (collapsed.entropy, collapsed.effective_answers) == (0.0, 1.0)


def test_a_prompt_without_an_acceptable_answer_counts_zero_not_nothing():
  found = functional.answer_statistics([None, None], set_size=4)
  assert (found.num_samples, found.num_acceptable, found.coverage, found.entropy, found.effective_answers) == (
    2, 0, 0.0, 0.0, 0.0,
  )  # fmt: skip


def test_the_plug_in_entropy_is_low_and_the_correction_helps():
  rng = np.random.default_rng(0)
  found = [functional.answer_statistics(list(rng.choice(list("abcdefgh"), 16)), set_size=8) for _ in range(400)]
  plug_in = np.mean([item.entropy for item in found])
  corrected = np.mean([item.entropy_miller_madow for item in found])
  assert plug_in < math.log(8) - 0.15
  assert abs(corrected - math.log(8)) < 0.06


def test_counts_are_ordered_by_frequency_then_name():
  assert list(functional.answer_counts(["b", None, "c", "a", "c"]).items()) == [("c", 2), ("a", 1), ("b", 1)]


def test_impossible_input_is_refused():
  with pytest.raises(ValueError, match="at least one sample"):
    functional.answer_statistics([], set_size=3)
  with pytest.raises(ValueError, match="set of 1"):
    functional.answer_statistics(["a", "b"], set_size=1)


def test_entropy_among_acceptable_responses_is_the_conditional_distributions():
  rng = np.random.default_rng(0)
  p = np.array([0.3, 0.2, 0.1, 0.4])
  drawn = rng.choice(4, p=p, size=(2, 200_000))
  acceptable = np.array([True, True, True, False])
  among = p[:3] / p[:3].sum()
  found = functional.acceptable_entropy(np.log(p)[drawn], acceptable[drawn] & np.array([[True], [False]]))
  assert found[0] == pytest.approx(-among @ np.log(among), abs=0.01) and np.isnan(found[1])
