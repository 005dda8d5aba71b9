"""Completions side by side: what the diffs mark, and that nothing in them is taken for HTML."""

from qempo_jax.evaluation import page_completions


def test_words_that_the_other_text_lacks_are_marked_and_escaped():
  found = page_completions.marked("the <b> red cat sat", "the black cat sat")
  assert found == "the <ins>&lt;b&gt; red</ins> cat sat"
  assert page_completions.marked("same words", "same words") == "same words"
  assert page_completions.marked("a & b", None) == "a &amp; b"


def test_each_answer_stands_under_the_policies_that_gave_it():
  counts = {"base": [["x", 2], ["y", 1]], "grpo": [["x", 3]], "qempo": [["x", 1], ["z<", 1], ["y", 1]]}
  answers = {"methods": {name: {"counts": of_name} for name, of_name in counts.items()}}
  found = page_completions.answer_diff(answers)
  assert "<b>All</b> (1): " in found and "<b>Base and QEMPO</b> (1): " in found and "<b>Only QEMPO</b> (1): " in found
  assert found.index("All") < found.index("Base and") < found.index("Only") and "z&lt;" in found
  assert page_completions.answer_diff({"methods": {"base": answers["methods"]["base"]}}) == ""
