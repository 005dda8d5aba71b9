"""Weighted compositions: normalisation, scores that are absent, floors, and what is refused."""

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import compose

PROMPTS = ["a", "a", "a", "b", "b"]
TEXTS = ["1", "2", "3", "4", "5"]


def fixed(*values):
  return lambda prompts, completions, **columns: list(values)


def total(*terms, **settings):
  return compose.Composition(terms, **settings)(PROMPTS, TEXTS, column=[0] * 5)


def test_the_sum_is_weighted():
  got = total(compose.Term("x", fixed(1, 2, 3, 4, 5), 2.0), compose.Term("y", fixed(1, 0, 1, 0, 1), -1.0))
  assert got == [1.0, 4.0, 5.0, 8.0, 9.0]


def test_group_normalisation_is_within_each_prompt():
  got = total(compose.Term("x", fixed(1, 2, 3, 7, 7), 1.0, "group"))
  np.testing.assert_allclose(got, [-np.sqrt(1.5), 0, np.sqrt(1.5), 0, 0], rtol=1e-6)


def test_running_normalisation_is_over_all_scores_so_far_and_resumes():
  composed = compose.Composition([compose.Term("x", fixed(1, 2, 3, None, 5), 1.0, "running")])
  first = composed(PROMPTS, TEXTS)
  seen = np.array([1, 2, 3, 5.0])
  scored = [first[index] for index in (0, 1, 2, 4)]
  np.testing.assert_allclose(scored, (seen - seen.mean()) / seen.std(), rtol=1e-5)
  resumed = compose.Composition([compose.Term("x", fixed(9, 9, 0, 0, 0), 1.0, "running")])
  resumed.from_json(composed.to_json())
  seen = np.array([1, 2, 3, 5, 9, 9, 0, 0, 0.0])
  np.testing.assert_allclose(resumed(PROMPTS, TEXTS), (seen[4:] - seen.mean()) / seen.std(), rtol=1e-5)
  with pytest.raises(InputError, match="running rewards"):
    resumed.from_json({})


def test_none_is_not_zero():
  others = compose.Term("y", fixed(10, 10, 10, 10, 10), 1.0)
  got = total(compose.Term("x", fixed(None, 2, 4, None, None), 1.0), others)
  assert got == [13.0, 12.0, 14.0, 10.0, 10.0]  # the mean of its group; left out where the group has none


def test_a_response_that_nothing_scored_has_no_score_unless_one_is_given():
  term = compose.Term("x", fixed(None, 2, 4, None, 1), 1.0)
  assert total(term) == [None, 2.0, 4.0, None, 1.0]
  assert total(term, unscored=-1.0) == [-1.0, 2.0, 4.0, -1.0, 1.0]


def test_floors_come_with_the_scores_as_they_are_and_each_function_is_called_once():
  calls = []

  def counted(prompts, completions, **columns):
    calls.append(columns)
    return [0.5, None, 1.5, 0, 0]

  composed = compose.Composition(
    [compose.Term("x", fixed(1, 2, 3, 4, 5)), compose.Term("safety", counted, 0.0, "group", floor=0.9)]
  )
  scores = composed.scores(PROMPTS, TEXTS, {"column": [0] * 5})
  assert composed.floors == {"safety": 0.9} and calls == [{"column": [0] * 5}]
  np.testing.assert_allclose(scores.by_name["safety"], [0.5, np.nan, 1.5, 0, 0])
  np.testing.assert_allclose(scores.total, [1, 2, 3, 4, 5])


def test_counts_are_named_by_reward():
  function = fixed(1, 1, 1, 1, 1)
  function.take_counts = lambda: {"timeout": 2}
  composed = compose.Composition([compose.Term("x", function), compose.Term("y", fixed(1, 1, 1, 1, 1))])
  assert composed.take_counts() == {"x/timeout": 2}


@pytest.mark.parametrize(
  ("terms", "said"),
  [
    ([], "at least one"),
    ([compose.Term("kl", fixed())], "'kl'"),
    ([compose.Term("two words", fixed())], "plain word"),
    ([compose.Term("x", fixed()), compose.Term("x", fixed())], "twice"),
    ([compose.Term("x", fixed(), 1.0, "batch")], "'batch'"),
    ([compose.Term("x", fixed(), float("nan"))], "weight nan"),
    ([compose.Term("x", fixed(), True)], "weight True"),
    ([compose.Term("x", fixed(), 1.0, "none", "high")], "floor 'high'"),
    ([compose.Term("x", fixed(), 0.0)], "neither"),
  ],
)
def test_mistakes_are_named(terms, said):
  with pytest.raises(InputError, match=said) as error:
    compose.Composition(terms)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [(1, 2), (1, 2, 3, 4, float("nan")), (1, 2, 3, 4, "5"), (1, 2, 3, 4, 10**400)])
def test_a_function_that_misbehaves_is_named(values):
  with pytest.raises(InputError, match="reward function"):
    total(compose.Term("x", fixed(*values)))


def test_checked_scores_still_refuses_none():
  with pytest.raises(InputError, match="finite number"):
    checked.scores(fixed(1.0, None), ["p", "p"], ["a", "b"], {})
  np.testing.assert_allclose(checked.scores_or_nan(fixed(1.0, None), ["p", "p"], ["a", "b"], {}), [1.0, np.nan])
