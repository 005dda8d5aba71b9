"""Scored responses: read in every form, turned into pairs and back, and encoded with the weights of the whole log."""

import json

import numpy as np
import pytest

from qempo_jax import coherent
from qempo_jax.data import formats
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import scored
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import RowError
from qempo_jax.data.examples import Scored
from qempo_jax.errors import InputError
from tests.data.preferences_test import LetterTokenizer

ROW = {"prompt": "p", "responses": ["a", "b", [97, 93]], "scores": [1, 0.5, True]}


def _file(tmp_path, *rows, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return f"jsonl:{path}"


def test_a_row_of_lists_is_read_and_written(tmp_path):
  row = ROW | {"response_answers": ["A", None, "A"], "target": 3, "split": "train"}
  name, example = formats.read(row, needs=formats.SCORED)
  assert name == "scored responses"
  assert example == Scored(
    {"split": "train", "prompt": "p", "target": 3}, ("a", "b", (97, 93)), (1.0, 0.5, 1.0), ("A", None, "A")
  )
  assert preferences.load_scored(_file(tmp_path, scored.to_json(example))) == [example]
  question = {"question": "q", "responses": ["a"], "scores": [2]}
  assert formats.read(question, needs=formats.PAIR)[1].row["prompt"] == "q"
  prompt_alone = formats.read(ROW, needs=formats.PROMPT)[1]
  assert prompt_alone.chosen is None and prompt_alone.row["scores"] == ROW["scores"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"scores": [1, 2]}, '3 "responses" and 2 "scores"'),
    ({"scores": [1, 2, "x"]}, "'x', which is not a finite number"),
    ({"scores": [1, 2, float("nan")]}, "not a finite number"),
    ({"responses": ["a", "", "b"]}, 'empty "responses"'),
    ({"responses": "a"}, "not two lists"),
    ({"response_answers": ["a"]}, "no list of 3"),
    ({"weight": -1}, "at least 0 times"),
    ({"weight": "heavy"}, "\"weight\" of 'heavy'"),
  ],
)
def test_a_row_that_does_not_fit_says_why(change, message):
  with pytest.raises(RowError, match=message):
    formats.read(ROW | change, needs=formats.SCORED)


def test_parquet_holds_lists_too(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  table = pyarrow.table({"prompt": ["p"], "responses": [["a", "b"]], "scores": [[1.0, 0.0]]})
  parquet.write_table(table, tmp_path / "rows.parquet")
  (found,) = preferences.load_scored(f"parquet:{tmp_path / 'rows.parquet'}")
  assert found.responses == ("a", "b") and found.scores == (1.0, 0.0)


def test_pairs_labels_and_single_responses_are_gathered_by_prompt_and_task(tmp_path):
  pairs = [
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "c", "rejected": "b", "score_chosen": 7, "score_rejected": 3},
    {"prompt": "q", "chosen": "d", "rejected": "e"},
    {"prompt": "p", "chosen": "f", "rejected": "g", "target": 3},
  ]
  first, second, third = preferences.load_scored(_file(tmp_path, *pairs))
  assert first == Scored({"split": "train", "prompt": "p"}, ("a", "b", "c", "b"), (1.0, 0.0, 7.0, 3.0), (None,) * 4)
  assert second.row["prompt"] == "q" and third.row["target"] == 3
  single = [
    {"prompt": "p", "completion": "a", "label": True},
    {"prompt": "p", "completion": "b", "label": False},  # no pair loss could use it
    {"prompt": "p", "completion": "c", "score": 0.25},
    {"prompt": "p", "completion": "d"},
  ]
  (found,) = preferences.load_scored(_file(tmp_path, *single))
  assert found.responses == ("a", "b", "c", "d") and found.scores == (1.0, 0.0, 0.25, 1.0)


def test_scored_responses_serve_pair_losses_and_fine_tuning(tmp_path):
  source = _file(tmp_path, {"prompt": "p", "responses": ["a", "b", "c", "a"], "scores": [0.2, 1, 0.2, 1.5]})
  best, second = preferences.load_preferences(source, rejected=True, most=5)
  assert (best.chosen, best.rejected, best.row["score_chosen"]) == ("a", "c", 1.5)
  assert (second.chosen, second.rejected) == ("b", "a")
  right = preferences.load_preferences(source, rejected=False, acceptable=1.0)
  assert [pair.chosen for pair in right] == ["b", "a"]


def _encode(examples, size=8, acceptable=1.0, longest=9):
  limits = {"max_prompt_length": 20, "max_response_length": longest}
  return scored.encode_lists(LetterTokenizer(), examples, size=size, acceptable=acceptable, **limits)


def _scored(responses, scores, answers=None, **columns):
  return Scored({"prompt": "p"} | columns, tuple(responses), tuple(scores), tuple(answers or [None] * len(scores)))


def test_equal_tokens_share_one_unit_of_weight():
  found = _encode([_scored("abcacd", [1, 0, 1, 1, 0.9, 0])])
  ids = [response[0] if response else None for response in found.responses[0]]
  assert ids == [*map(ord, "acabcd"), None, None]  # acceptable ones first, then the others, then padding
  np.testing.assert_allclose(found.lists.chosen[0], [1 / 4, 1 / 2, 1 / 4, 0, 0, 0, 0, 0])
  np.testing.assert_allclose(found.lists.rejected[0], [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0])
  np.testing.assert_allclose(
    found.lists.sizes[0], [2, 2, 2, 0.5, 0.5, 0.5, 0, 0]
  )  # two texts; half of the log is wrong


def test_answers_tell_duplicates_by_the_data_or_by_the_task():
  told = _encode([_scored(["one", "1", "two"], [1, 1, 1], ["1", "1", None])])
  np.testing.assert_allclose(told.lists.chosen[0, :3], [1 / 4, 1 / 4, 1 / 2])
  np.testing.assert_allclose(told.lists.sizes[0, :3], [4, 4, 2])
  task = _encode([_scored(["2+3", "3+2", "1+4", "4"], [1, 1, 1, 0], set_name="countdown 5")])
  np.testing.assert_allclose(task.lists.chosen[0, :4], [1 / 4, 1 / 4, 1 / 2, 0])
  ids = tuple(map(ord, "3+2]"))
  unknown = _encode([_scored(["2+3", ids], [1, 1], set_name="something else")])
  np.testing.assert_allclose(unknown.lists.chosen[0, :2], [1 / 2, 1 / 2])


def test_a_long_list_makes_examples_whose_losses_average_to_its_own():
  """Pair terms on average over orders; the likelihood exactly."""
  whole = _scored("aabbcdefgh", [1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
  found = _encode([whole, _scored("xy", [1, 0])], size=5)
  assert [len([r for r in group if r]) for group in found.responses] == [5, 5, 2]
  shares = {}
  for group, weights in zip(found.responses[:2], found.lists.chosen[:2], strict=True):
    for response, weight in zip(group, weights, strict=True):
      shares[response] = shares.get(response, 0.0) + weight / 3  # the mean over three examples
  np.testing.assert_allclose([shares[ord(x), ord("]")] for x in "abc"], [1 / 6] * 3, rtol=1e-6)  # of two prompts
  np.testing.assert_allclose(found.lists.rejected[:2].sum(axis=1).mean(), 1, rtol=1e-6)
  assert sorted((found.lists.chosen[:2] > 0).sum(axis=1)) == [2, 3]  # both parts have their share of right ones


def test_targets_are_a_distribution_over_what_was_logged():
  """R on the logged answers, and (1 - R) times the reference's own conditional on what else it writes."""
  found = _encode([_scored("aabcdd", [1, 1, 1, 0, 0, 0])])
  ref = np.log(np.where(found.lists.chosen[0, :6] > 0, 0.1, 0.25))  # c and d twice as drawn: q(not A) = 1/2
  sizes = found.lists.sizes[0, :6]
  target = coherent.coherent_target_log_probs(
    found.lists.chosen[0, :6, None] > 0,
    ref[:, None],
    acceptable_share=0.8,
    num_acceptable=sizes,
    ref_unacceptable=sizes,
  )[:, 0]
  of = dict(zip([r[0] for r in found.responses[0][:6]], np.exp(target), strict=True))
  np.testing.assert_allclose([of[ord(x)] for x in "abcd"], [0.4, 0.4, 0.1, 0.1], rtol=1e-6)


def test_what_cannot_be_trained_on_is_left_out():
  found = _encode([_scored(["ok", "far too long", "a]b", "no"], [1, 1, 1, 0]), _scored("b", [0], target=1)])
  assert len(found.rows) == 1 and (found.dropped, found.ended) == (1, 1)
  np.testing.assert_allclose(found.lists.chosen[0, :2], [1, 0])
  cut = scored.encode_lists(
    LetterTokenizer(), [_scored(["far too long", "b"], [1, 0])], size=2, acceptable=1.0, max_prompt_length=20,
    max_response_length=5, too_long="truncate",
  )  # fmt: skip
  assert cut.responses[0][0] == tuple(map(ord, "far t")) and cut.dropped == 0
  with pytest.raises(InputError, match="no prompt is left with an acceptable response, of score 2 or more"):
    _encode([_scored("ab", [1, 0])], acceptable=2.0)


def test_a_weight_is_read_with_the_row(tmp_path):
  rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "weight": w} for w in (2, None, 0.5)]
  pairs = preferences.load_preferences(_file(tmp_path, *rows), rejected=True)
  limits = {"max_prompt_length": 20, "max_response_length": 9}
  encoded = pair_tokens.encode_pairs(LetterTokenizer(), pairs, responses=2, **limits)
  np.testing.assert_array_equal(encoded.weights(), [2, 1, 0.5])
  plain = pair_tokens.encode_pairs(LetterTokenizer(), [Preference({"prompt": "p"}, "a", "b")], responses=2, **limits)
  assert plain.weights() is None and plain.fingerprint() != encoded.fingerprint()
