"""Completions side by side: what the diffs mark, and under which policies the answers stand."""

from qempo_jax.evaluation import page_completions


def test_words_that_the_other_text_lacks_are_marked():
  found = page_completions.marked("the <b> red cat sat", "the black cat sat")
  assert found == [("the ", False), ("<b> red", True), (" cat sat", False)]
  assert page_completions.marked("same words", "same words") == [("same words", False)]
  assert page_completions.marked("a & b", None) == [("a & b", False)]


def test_each_answer_stands_under_the_policies_that_gave_it():
  counts = {"base": [["x", 2], ["y", 1]], "grpo": [["x", 3]], "qempo": [["x", 1], ["z<", 1], ["y", 1]]}
  answers = {"methods": {name: {"counts": of_name} for name, of_name in counts.items()}}
  assert page_completions.answer_groups(answers) == [
    ("All", 1, ["x"], ""),
    ("Base and QEMPO", 1, ["y"], ""),
    ("Only QEMPO", 1, ["z<"], ""),
  ]
  assert page_completions.answer_groups({"methods": {"base": answers["methods"]["base"]}}) == []
