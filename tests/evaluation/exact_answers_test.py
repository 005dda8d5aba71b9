"""Exact figures against sums over all responses, and against samples."""

import numpy as np
import pytest

from qempo_jax.evaluation import exact_answers
from qempo_jax.evaluation import functional

STOP, OTHER = 0, 9
FORMS = {"a b": "first", "A b": "first", "c": "second", "c d e": "third", "c x": "third", "c s": "first"}
TOKENS = [[1, 2], [3, 2], [4], [4, 5, 6], [4, 7], [4, STOP]]


def _entropy(probs):
  probs = probs[probs > 0]
  return -np.sum(probs * np.log(probs))


def _problem(seed=0):
  """Random probabilities of 40 responses, the first 12 of which give 5 answers."""
  probs = np.random.default_rng(seed).dirichlet(np.full(40, 0.5))
  return probs, [f"answer {index % 5}" for index in range(12)]


def test_every_way_to_end_is_a_response_and_what_cannot_be_sampled_is_none():
  found = exact_answers.right_responses(FORMS, TOKENS, stop_tokens=(STOP, OTHER), max_length=3, forbidden=(7,))
  assert found == {
    (1, 2, STOP): "first", (1, 2, OTHER): "first", (3, 2, STOP): "first", (3, 2, OTHER): "first",
    (4, STOP): "second", (4, OTHER): "second", (4, 5, 6): "third",
  }  # fmt: skip
  assert list(exact_answers.right_responses(FORMS, TOKENS, stop_tokens=(STOP,), max_length=2)) == [
    (1, 2), (3, 2), (4, STOP), (4, 7),
  ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_sums_over_all_responses(seed):
  probs, answers = _problem(seed)
  found = exact_answers.figures(np.log(probs[:12]), answers, draws=(1, 64))
  right, mass = probs[:12].sum(), np.array([probs[:12][np.array(answers) == name].sum() for name in sorted({*answers})])
  assert found.acceptable == pytest.approx(right)
  assert found.effective_answers == pytest.approx(np.exp(_entropy(mass / right)))
  np.testing.assert_allclose(found.distinct, [right, (1 - (1 - mass) ** 64).sum()])
  assert found.entropy_accept == pytest.approx(_entropy(np.array([right, 1 - right])))
  assert found.entropy_right == pytest.approx(right * _entropy(probs[:12] / right))
  wrong = (1 - right) * _entropy(probs[12:] / (1 - right))
  assert found.entropy_accept + found.entropy_right + wrong == pytest.approx(_entropy(probs))


def test_the_wrong_part_is_estimated_without_bias_and_samples_agree_with_the_exact_figures():
  probs, answers = _problem()
  exact = exact_answers.figures(np.log(probs[:12]), answers, draws=(32,))
  samples = np.random.default_rng(1).choice(40, size=(4000, 32), p=probs)
  wrong = (1 - exact.acceptable) * _entropy(probs[12:] / (1 - exact.acceptable))
  estimates = [exact_answers.wrong_entropy(np.log(probs[of]), of < 12, acceptable=exact.acceptable) for of in samples]
  given = [[answers[index] if index < 12 else None for index in of] for of in samples]
  statistics = [functional.answer_statistics(of, set_size=5) for of in given]
  for sampled, expected in (
    (estimates, wrong),
    ([one.num_acceptable / 32 for one in statistics], exact.acceptable),
    ([one.num_distinct for one in statistics], exact.distinct[0]),
  ):
    assert abs(np.mean(sampled) - expected) < 4 * np.std(sampled) / np.sqrt(len(samples))
  assert np.mean([one.effective_answers for one in statistics]) < exact.effective_answers  # the plug-in is biased low


def test_extremes_are_finite():
  for log_probs in ([-np.inf, -np.inf], [0.0, -np.inf], [1e-9, -50.0]):
    found = exact_answers.figures(np.array(log_probs), ["a", "b"], draws=(64,))
    assert all(np.all(np.isfinite(value)) for value in found) and 0 <= found.acceptable <= 1
    assert np.isfinite(exact_answers.wrong_entropy(np.array([-1.0]), np.array([True]), acceptable=found.acceptable))
  assert exact_answers.figures(np.array([-np.inf]), ["a"], draws=()).effective_answers == 0
