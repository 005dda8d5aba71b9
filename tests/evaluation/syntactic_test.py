"""Weisfeiler-Lehman diversity by hand, and spaCy's documents."""

import sys
import types

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import syntactic


def _tree(upos, head):
  return syntactic.checked_tree(upos.split(), head)


def test_kernel_by_hand():
  # One word: labels none, X; then both see one neighbour. Two words in a chain add a label that differs.
  short, longer = _tree("X", (0,)), _tree("X X", (0, 1))
  # 0 iterations: (none 1, X 1) and (none 1, X 2).
  assert 1 - syntactic.wl_diversity([short, longer], iterations=0) == pytest.approx(3 / np.sqrt(2 * 5))
  # 1 iteration: none(X) in both; X(none) against X(none, X) and X(X): one common label more.
  assert 1 - syntactic.wl_diversity([short, longer], iterations=1) == pytest.approx(4 / np.sqrt(4 * 8))


def test_edges_have_no_direction_and_order_of_words_does_not_matter():
  first, second = _tree("VERB NOUN ADV", (0, 1, 1)), _tree("ADV NOUN VERB", (3, 3, 0))
  assert syntactic.wl_diversity([first, second]) == pytest.approx(0, abs=1e-15)
  assert syntactic.wl_diversity([first, _tree("VERB NOUN ADV", (0, 1, 2))]) > 0.1


def test_the_mean_is_that_of_the_kernel():
  rng = np.random.default_rng(0)
  trees = [
    _tree(" ".join(rng.choice(list("ABC"), 6)), [0, *(int(rng.integers(1, i + 1)) for i in range(1, 6))])
    for _ in range(20)
  ]
  rows, columns, values = syntactic.wl_features(trees)
  dense = np.zeros((20, columns.max() + 1))
  dense[rows, columns] = values
  kernel = dense @ dense.T
  np.testing.assert_allclose(np.diagonal(kernel), 1)
  assert syntactic.wl_diversity(trees) == pytest.approx(np.mean(1 - kernel[~np.eye(20, dtype=bool)]), abs=1e-14)
  assert np.isnan(syntactic.wl_diversity(trees[:1]))


@pytest.fixture(autouse=True)
def fresh_pipelines():
  syntactic._pipeline.cache_clear()
  yield
  syntactic._pipeline.cache_clear()


def test_spacy_documents_become_trees_without_blanks(monkeypatch):
  def token(i, pos, is_space=False):
    return types.SimpleNamespace(i=i, pos_=pos, is_space=is_space)

  words = [token(0, "SPACE", True), token(1, "VERB"), token(2, "NOUN"), token(3, "PUNCT")]
  for word, head in zip(words, (1, 1, 1, 2), strict=True):
    word.head = words[head]
  pipeline = types.SimpleNamespace(pipe=lambda texts: [types.SimpleNamespace(sents=[words]) for _ in texts])
  monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=lambda *_, **__: pipeline))
  assert syntactic.parse_with_spacy(["Go home!"]) == [_tree("VERB NOUN PUNCT", (0, 1, 2))]


def test_without_spacy_the_remedy_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "spacy", None)
  with pytest.raises(InputError, match="pip install spacy"):
    syntactic.parse_with_spacy(["text"])
