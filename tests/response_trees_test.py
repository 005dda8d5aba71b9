"""Responses scored by their common beginnings, against rows of whole responses."""

import functools

import jax
import numpy as np
import pytest

from qempo_jax import response_trees
from qempo_jax.models import parameters
from tests.loops import toy

RESPONSES = toy.responses()  # every one there is
PROMPTS = [toy.ToyTokenizer().encode(prompt) for prompt in toy.PROMPTS]


@functools.cache
def _params():
  return parameters.init(jax.random.key(3), toy.MODEL, stddev=0.6)  # a few likely responses, and many unlikely ones


@functools.cache
def _expected():
  return toy.log_probs(_params())


_SCORE = jax.jit(response_trees.score_trees, static_argnames="config")


def _score(batch):
  return np.asarray(_SCORE(_params(), toy.MODEL, batch, temperature=1.0))


def test_every_response_has_its_log_probability_and_all_of_them_sum_to_one():
  tree = response_trees.tree_of(RESPONSES)
  assert len(tree.tokens) < sum(map(len, RESPONSES)) / 2
  widths = []
  score = lambda batch: (widths.append(batch.tokens.shape[1]), _score(batch))[1]
  found = response_trees.log_probs(score, PROMPTS, [tree, tree], max_nodes=32)
  assert max(widths) <= 16 + 32  # 32 nodes, their beginnings among them
  for (log_probs, left_out), expected in zip(found, _expected()):
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5)
    assert left_out == 0 and np.exp(log_probs).sum() == pytest.approx(1, abs=1e-5)


def test_rows_have_trees_of_their_own():
  few = [RESPONSES[5::97], RESPONSES[::31]]
  found = response_trees.log_probs(_score, PROMPTS, list(map(response_trees.tree_of, few)))
  for (log_probs, _), expected, step in zip(found, _expected(), (slice(5, None, 97), slice(None, None, 31))):
    np.testing.assert_allclose(log_probs, expected[step], rtol=1e-5, atol=1e-5)


def test_a_prompt_with_many_nodes_fills_the_rows_of_one_with_few():
  trees = [response_trees.tree_of(RESPONSES), response_trees.tree_of(RESPONSES[:1])]
  used = []
  score = lambda batch: (used.append((np.asarray(batch.nodes) > 0).any(axis=1)), _score(batch))[1]
  found = response_trees.log_probs(score, PROMPTS, trees, max_nodes=16)
  np.testing.assert_allclose(found[0][0], _expected()[0], rtol=1e-5, atol=1e-5)
  levels = trees[0].depths.max()
  assert len(used) <= np.sum(used) / 2 + levels  # at most one row a level stays empty


@pytest.mark.parametrize("tolerance", [1e-9, 0.02, 0.3])
def test_no_more_than_the_tolerance_is_left_out(tolerance):
  trees = [response_trees.tree_of(RESPONSES)] * 2
  found = response_trees.log_probs(_score, PROMPTS, trees, tolerance=tolerance)
  for (log_probs, left_out), expected in zip(found, _expected()):
    kept = np.isfinite(log_probs)
    np.testing.assert_allclose(log_probs[kept], expected[kept], rtol=1e-5, atol=1e-5)
    assert np.exp(expected[~kept]).sum() == pytest.approx(left_out, abs=1e-5) and left_out <= tolerance
    assert (~kept).sum() > (len(kept) / 3 if tolerance > 0.01 else -1)


def test_the_temperature_is_the_samplers(monkeypatch):
  config = toy.MODEL
  tree = response_trees.tree_of(RESPONSES)
  score = lambda batch: np.asarray(_SCORE(_params(), config, batch, temperature=0.5))
  (log_probs, _), _ = response_trees.log_probs(score, PROMPTS, [tree, tree])
  assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-5)
  assert np.exp(log_probs).max() > np.exp(_expected()[0]).max()
