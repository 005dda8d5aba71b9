"""Figures of texts without known answers, by hand."""

import numpy as np

from experiments.measure import text_figures


def test_figures_by_hand():
  groups = [["a b c", "a b c"], ["a b", "c d"]]
  embed = lambda texts: np.array([[1.0, 0.0] if text.startswith("a") else [0.0, 1.0] for text in texts])
  found = text_figures.figures(groups, embed)
  np.testing.assert_allclose(found["distinct_2"][:, 0], [2 / 4, 1.0])
  np.testing.assert_allclose(found["self_bleu"][0], 1.0, rtol=0.5)
  assert found["self_bleu"][1] == 0
  np.testing.assert_allclose(found["semantic_distance"][:, 0], [0.0, 0.5])
