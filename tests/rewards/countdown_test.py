"""Countdown puzzles: what is right, which solutions are one, and that no target is on both sides."""

import itertools
import time

import numpy as np
import pytest

from qempo_jax.data import prompts
from qempo_jax.errors import InputError
from qempo_jax.rewards import answers
from qempo_jax.rewards import countdown


@pytest.mark.parametrize(
  "text, target, form",
  [
    ("2*6+1", 13, "2*6+1"),
    ("1 + 6 * 2\n", 13, "2*6+1"),
    (" 9-3", 6, "9-3"),
    ("8 + 5-2", 11, "5+8-2"),
    ("3*2*4", 24, "2*3*4"),
    ("1-2*3", -5, "1-2*3"),
    ("9-3-2", 4, "9-2-3"),
    ("9-3+2", 8, "2+9-3"),
  ],
)
def test_right_answers_have_one_form(text, target, form):
  assert countdown.solution(text, target) == form
  assert countdown.solution(text, target + 1) is None
  assert countdown.countdown_reward(["p"] * 2, [text] * 2, target=[target, target + 1]) == [1.0, 0.0]


@pytest.mark.parametrize(
  "text",
  [
    "13",
    "13+0",
    "12+1",
    "2*6+1=13",
    "(2*6)+1",
    "2*6+1.",
    "-1+7+7",
    "1+2+3+7",
    "2**6",
    "6 +  7",
    "26/2",
    "६+7",
    "6\n+7",
    "",
    "__import__('os')",
  ],
)
def test_anything_else_is_no_answer(text):
  assert countdown.solution(text, 13) is None


def test_values_are_pythons_and_every_solution_is_listed():
  found = {}
  for count in (2, 3):
    for digits in itertools.product("123456789", repeat=count):
      for signs in itertools.product("+-*", repeat=count - 1):
        text = digits[0] + "".join(sign + digit for sign, digit in zip(signs, digits[1:]))
        value = eval(text)  # of digits and signs made here
        form = countdown.solution(text, value)
        assert form is not None and eval(form) == value and countdown.solution(form, value) == form
        found.setdefault(value, set()).add(form)
  for target in (2, 7, 18, 28):
    assert countdown.solutions(target) == found[target]
    assert answers.set_size(answers.countdown_set(target)) == len(found[target])
  assert countdown.solutions(2) >= {"1+1", "3-1", "1*2", "1*1*2", "1+2-1"} and not countdown.solutions(1000)
  assert min(len(countdown.solutions(n)) for of in countdown.TARGETS.values() for n in of) >= 10


def test_written_forms_are_all_right_texts_but_for_blanks_around_the_whole():
  found = countdown.written_forms(24)
  assert {*found.values()} == countdown.solutions(24) and all(countdown.solution(t, 24) == s for t, s in found.items())
  assert found["4*6"] == found["6 *4"] == found["6 * 4"] and "4*7" not in found
  texts = ("".join(parts) for parts in itertools.product("123456789", ("*", " *", "* ", " * "), "123456789"))
  assert {text for text in texts if countdown.solution(text, 24)} == {
    text for text in found if len(text.replace(" ", "")) == 3
  }


def test_splits_share_no_target_and_the_shown_puzzles_are_right_and_in_none():
  every = [target for of in countdown.TARGETS.values() for target in of]
  assert len(every) == len(set(every))
  for target, answer in countdown.EXAMPLES:
    assert target not in every and countdown.solution(answer, target)
  rows = prompts.load_rows("countdown")
  assert [row["target"] for row in rows] == list(countdown.TRAIN_TARGETS)
  assert rows[0]["prompt"][-1] == {"role": "user", "content": str(rows[0]["target"])} and len(
    {row["prompt"] for row in rows}
  ) == len(rows)
  with pytest.raises(InputError, match="'test'"):
    countdown.targets("test")


def test_hostile_text_is_judged_at_once():
  texts = ["1+" * 200_000 + "1", " " * 400_000, "9*" * 200_000, "1" * 400_000]
  started = time.process_time()
  assert countdown.countdown_reward(texts, texts, target=[1] * len(texts)) == [0.0] * len(texts)
  assert time.process_time() - started < 1.0


def test_answers_tell_the_kinds_of_sets_apart():
  assert answers.parse_answer("6+7", "countdown 13") == "6+7" and answers.parse_answer("Ohio", "us_state") == "Ohio"
  assert answers.set_size("us_state") == 50
  np.testing.assert_equal(answers.parse_answer("6+8", "countdown 13"), None)
