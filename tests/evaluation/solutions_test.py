"""pass@k against SciPy (golden), majority@k against enumeration."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import solutions

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", list(GOLDEN["others"]["pass_at_k"]))
def test_pass_at_k_is_the_hypergeometric_chance(case):
  n, c, k = map(int, case.split(","))
  found = solutions.pass_at_k(np.array([n]), np.array([c]), k=k)
  assert found[0] == pytest.approx(GOLDEN["others"]["pass_at_k"][case], rel=1e-12)


def test_pass_at_k_is_stable_where_binomials_overflow_and_tiny_values_survive():
  found = solutions.pass_at_k(np.array([1_000_000, 10**6]), np.array([1, 500_000]), k=10)
  assert found[0] == pytest.approx(1e-5, rel=1e-12)
  assert found[1] == pytest.approx(1 - 0.5**10, rel=1e-5)


def test_drawing_with_replacement_would_be_low():
  rng = np.random.default_rng(0)
  correct = np.arange(10) < 3
  resampled = np.mean([rng.choice(correct, 4).any() for _ in range(4000)])
  assert resampled < solutions.pass_at_k(np.array([10]), np.array([3]), k=4)[0] - 0.04


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_majority_at_k_is_the_mean_over_all_draws(k):
  answers, correct = ["7", "7", "8", None, "9"], [True, True, False, False, False]
  votes = []
  for chosen in itertools.combinations(range(5), k):
    given = [answers[i] for i in chosen if answers[i] is not None]
    leaders = {a for a in given if given.count(a) == max(map(given.count, given))}
    votes.append(("7" in leaders) / len(leaders) if leaders else 0)
  found = solutions.majority_at_k(answers, correct, k=k, num_draws=40_000)
  assert found == pytest.approx(np.mean(votes), abs=1e-12 if k in (1, 5) else 0.01)


def test_a_vote_without_votes_is_wrong():
  # One of the three pairs has no vote; the others have one, for the right answer.
  found = solutions.majority_at_k(["7", None, None], [True, False, False], k=2, num_draws=40_000)
  assert found == pytest.approx(2 / 3, abs=0.01)


def test_impossible_input_is_refused():
  for call in (
    lambda: solutions.pass_at_k(np.array([3]), np.array([1]), k=4),
    lambda: solutions.pass_at_k(np.array([3]), np.array([4]), k=1),
    lambda: solutions.majority_at_k(["a"], [True], k=2),
    lambda: solutions.majority_at_k(["a", "a"], [True, False], k=1),
  ):
    with pytest.raises(InputError):
      call()
