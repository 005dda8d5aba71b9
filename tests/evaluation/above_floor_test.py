"""Diversity above the floor: garbage does not count, failing never pays, and the figures over all outputs are right."""

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import above_floor
from qempo_jax.evaluation import equivalence

KINDS = {"kinds": above_floor.Metric(lambda texts: float(equivalence.exact(texts).max() + 1), 0.0)}


def _figures(texts, rewards, **settings):
  shape = np.shape(rewards)
  given = {"num_tokens": np.full(shape, 4.0), "truncated": np.zeros(shape), "metrics": KINDS, "num_draws": 200}
  return above_floor.diversity(texts, np.array(rewards), floor=0.5, **given | settings)


def test_diverse_garbage_is_no_diversity():
  texts = [["good", "x1", "x2", "good"], ["fine", "good", "fine", "x3"]]
  found = _figures(texts, [[1, 0, 0.4, 1], [1, 0.5, 1, 0]])
  assert found.all_outputs["kinds"].per_prompt.tolist() == [3, 3]
  assert found.above_floor["kinds"].per_prompt.tolist() == [1, 2]
  assert (found.all_outputs["kinds"].corpus, found.above_floor["kinds"].corpus) == (5, 2)
  assert found.above_floor["kinds"].mean.mean == 1.5
  assert found.acceptable_per_prompt.tolist() == [2, 3] and found.samples_per_prompt == 4


def test_matched_numbers_and_the_worst_value_for_prompts_that_fail():
  texts = [["a", "b", "c", "d"], ["a", "b", "c", "d"], ["a", "b", "c", "d"]]
  rewards = [[0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0]]
  assert _figures(texts, rewards).above_floor["kinds"].per_prompt.tolist() == [3, 2, 0]
  matched = _figures(texts, rewards, matched=2)
  assert matched.above_floor["kinds"].per_prompt.tolist() == [2, 2, 0]
  assert matched.acceptable_per_prompt.tolist() == [2, 2, 1]
  assert _figures(texts, rewards, matched=3).above_floor["kinds"].per_prompt.tolist() == [3, 0, 0]


def test_nothing_acceptable_gives_worst_values_for_every_lexical_metric():
  found = _figures([["a b c", "c d a b"], ["e f g", "g h e"]], np.zeros((2, 2)), metrics=above_floor.LEXICAL_METRICS)
  for name, metric in above_floor.LEXICAL_METRICS.items():
    assert np.all(found.above_floor[name].per_prompt == metric.worst), name
    assert found.above_floor[name].corpus == metric.worst
    assert found.all_outputs[name].mean.mean != metric.worst, name


def test_what_stands_beside():
  entropy, tokens = np.array([[2.0, 6.0], [3.0, 3.0]]), np.array([[1.0, 3.0], [6.0, 6.0]])
  found = _figures(
    [["a b c d a b c d", "x"], ["y", "z"]], np.array([[1, 0], [1, 1]]), num_tokens=tokens,
    truncated=np.array([[1, 0], [0, 0]]), sequence_entropy=entropy,
  ).beside  # fmt: skip
  assert found["reward"].mean == found["acceptable"].mean == 0.75
  assert (found["length"].mean, found["truncation"].mean) == (4, 0.25)
  assert found["sequence_entropy"].mean == 3.5 and found["token_entropy"].mean == pytest.approx((2 + 0.5) / 2)
  assert found["repetition"].mean == pytest.approx(0.2 / 4)  # one of five 4-grams of one text of four


def test_unequal_samples_and_shapes_are_refused():
  with pytest.raises(InputError, match="equally many"):
    _figures([["a", "b"], ["a"]], np.zeros((2, 2)))
  with pytest.raises(InputError, match="rewards"):
    _figures([["a", "b"]], np.zeros((2, 2)))
  with pytest.raises(InputError, match="at least 2"):
    _figures([["a", "b"]], np.zeros((1, 2)), matched=1)
