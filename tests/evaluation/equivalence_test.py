"""Equivalences, and distinct_k against enumeration and SciPy's hypergeometric distribution (golden)."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import equivalence
from qempo_jax.evaluation import functional

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))


def test_exact_and_normalised():
  outputs = ["The Café.", "cafe\u0301", " a café!", "Cafe", "the", "The.", "!", "?", "A"]
  assert equivalence.exact(outputs).tolist() == list(range(9))
  assert equivalence.normalised(outputs).tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_distinct_k_is_the_mean_over_all_draws(k):
  outputs = ["a", "a", "b", None, "a", "c"]
  draws = [len({outputs[i] for i in chosen} - {None}) for chosen in itertools.combinations(range(6), k)]
  assert functional.distinct_k(outputs, k=k, equivalence=equivalence.exact) == pytest.approx(np.mean(draws), abs=1e-12)


def test_rarefaction_is_that_of_the_hypergeometric_distribution():
  case = GOLDEN["others"]["rarefied"]
  found = functional.rarefied_types(np.array(case["counts"]), total=case["total"], size=case["size"])
  assert found == pytest.approx(case["types"], rel=1e-12)


def test_nothing_acceptable_counts_nothing():
  assert functional.distinct_k([None, None], k=2, equivalence=equivalence.exact) == 0


def test_impossible_counts_are_refused():
  for call in (
    lambda: functional.distinct_k(["a"], k=2, equivalence=equivalence.exact),
    lambda: functional.distinct_k(["a", "b"], k=1, equivalence=lambda outputs: np.zeros(1)),
    lambda: functional.rarefied_types(np.array([2]), total=2, size=3),
  ):
    with pytest.raises(InputError):
      call()


@pytest.mark.parametrize(
  ("first", "second"),
  [
    ("Paris.", "paris"),
    ("**Paris**", "PARIS"),
    ("- Paris", "Paris"),
    ("5.", "5"),
    ("$x^2$", "x²"),
    ("½", "1/2"),
    ("−5", "-5"),
    ("x ≤ 5", "x <= 5"),
    ("1990–1995", "1990-1995"),
    ("well-known", "well known"),
    ("pa\xadris", "paris"),
    ("5 %", "5%"),
    ("今天好。", "今天好"),
    ("2 + 2 = 4", "2+2=4"),
    ("don’t", "don't"),
    ("'a'", "a"),
    ('He said "I am 5"', "he said I am 5"),
    ("*5*", "5"),
    ("*A* search", "A search"),
    ("ไป โรงเรียน", "ไปโรงเรียน"),
    ("東京　タワー", "東京タワー"),
    ("今天，天气很好", "今天天气很好"),
  ],
)
def test_dress_does_not_make_another_answer(first, second):
  assert equivalence.normal_form(first) == equivalence.normal_form(second)


@pytest.mark.parametrize(
  ("first", "second"),
  [
    ("C++", "C"),
    ("C#", "C"),
    ("-5", "5"),
    ("<=", ">="),
    ("x <= 5", "x >= 5"),
    ("x<5", "x<=5"),
    ("5%", "5"),
    ("$5", "5"),
    ("3.5", "35"),
    ("1/2", "12"),
    ("2½", "21/2"),
    ("10²", "102"),
    ("A+", "A-"),
    ("Vitamin A", "Vitamin"),
    ("The answer is -5", "The answer is 5"),
    ("答案是-5", "答案是5"),
    ("x = 5", "x != 5"),
    ("(2+3)*4", "2+3*4"),
    ("[0,1)", "(0,1]"),
    (".NET", "net"),
    ("We use C++", "We use C"),
    ("क", "कि"),
    ("1, -2", "1-2"),
    ("5°C", "5C"),
    ("f'", "f"),
    ("f′(x)", "f(x)"),
    ("6'2\"", "62"),
    ("He is 6'2\"", "He is 62"),
    ("5’", "5"),
    ("5″", "5′"),
    ("A*", "A"),
    ("A* search", "A search"),
    ("!x", "x"),
    ("a_b", "b"),
    ("나는 가", "나는가"),
  ],
)
def test_signs_and_marks_make_another_answer(first, second):
  assert equivalence.normal_form(first) != equivalence.normal_form(second)


def test_words_of_thai_stay_apart():
  assert equivalence.normalised(["ปี", "ปู", "ปิ", "ป"]).tolist() == [0, 1, 2, 3]
