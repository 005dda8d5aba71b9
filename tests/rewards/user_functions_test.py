"""Reward functions of users that exit, raise anything, or return what is no score: one line that names function and remedy."""

import sys

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import registry


def leaves(prompts, completions, **columns):
  sys.exit(0)


def leaves_late(prompts, completions, **columns):
  yield 1.0
  sys.exit(0)


class Unprintable:
  """Neither a number nor anything that can be shown."""

  def __init__(self):
    self.__name__ = "unprintable"

  def __repr__(self):
    raise ValueError

  def __call__(self, prompts, completions, **columns):
    return [self] * len(completions)


def refused(function, message, **columns):
  with pytest.raises(InputError, match=message) as caught:
    checked.scores_or_nan(function, ["p"] * 2, ["a", "b"], columns)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("function", [leaves, leaves_late])
def test_a_function_that_exits_does_not_end_the_program(function):
  refused(function, f"{function.__name__} raised SystemExit: 0; fix it")


@pytest.mark.parametrize("value", [1e300, -1e39, 10**400, float("inf"), float("nan"), "1", [1.0], 1j, np.zeros(2)])
def test_what_float32_cannot_hold_is_no_score(value):
  refused(lambda prompts, completions: [0.0, value], "returned .* for completion 1 .*must be a finite number")


def test_a_value_that_cannot_be_shown_is_named():
  refused(Unprintable(), "unprintable returned <Unprintable instance at .* for completion 0")


def test_the_largest_scores_of_float32_are_scores():
  largest = float(np.finfo(np.float32).max)
  found = checked.scores_or_nan(lambda **columns: [largest, np.float32(-largest)], ["p"] * 2, ["a", "b"], {})
  np.testing.assert_array_equal(found, np.float32([largest, -largest]))
  assert checked.scores_or_nan(lambda **columns: (x for x in (True, None)), ["p"] * 2, ["a", "b"], {})[0] == 1


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_with_an_arguments_name_is_the_datas_mistake(name):
  refused(lambda **columns: [0.0, 0.0], f"the rows have a column '{name}'.*rename it", **{name: ["x", "y"]})


class Odd:
  """A reward that exits while it is made."""

  def __init__(self, **settings):
    sys.exit(1)


def test_a_reward_that_exits_while_it_is_made_is_one_line():
  with pytest.raises(InputError, match="cannot be made: SystemExit: 1"):
    registry.resolve("tests.rewards.user_functions_test.Odd(a=1)")
