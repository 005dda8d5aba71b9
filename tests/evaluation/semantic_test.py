"""Semantic figures against scikit-learn and vendi-score (golden), and the encoder against PyTorch (golden)."""

import json
import pathlib

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import semantic
from qempo_jax.evaluation import sentence_encoder

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))["embeddings"]
ROWS = np.array(GOLDEN["rows"])


def _kernel():
  unit = semantic.unit_rows(ROWS)
  return unit @ unit.T


def test_mean_pairwise_distance_is_that_of_scikit_learn():
  assert semantic.mean_pairwise_distance(ROWS) == pytest.approx(GOLDEN["mean_pairwise"], abs=1e-14)
  assert semantic.mean_pairwise_distance(np.ones((5, 3))) == pytest.approx(0, abs=1e-15)
  assert np.isnan(semantic.mean_pairwise_distance(np.ones((1, 3))))


@pytest.mark.parametrize("q", ["1", "2", "3.5", "10", "inf"])
def test_vendi_score_is_that_of_its_authors_code(q):
  assert semantic.vendi_score(_kernel(), q=float(q)) == pytest.approx(GOLDEN["vendi"][q], rel=1e-12)
  assert semantic.vendi_score_of_embeddings(ROWS, q=float(q)) == pytest.approx(GOLDEN["vendi"][q], rel=1e-12)


@pytest.mark.parametrize("q", ["0.1", "0.5", "1", "2"])
def test_orders_below_one_are_not_ruled_by_rounding(q):
  assert semantic.vendi_score(_kernel(), q=float(q)) == pytest.approx(GOLDEN["vendi_dual"][q], rel=1e-10)


def test_vendi_score_is_continuous_and_falls_in_q_and_ends_at_rank_and_largest_share():
  scores = [semantic.vendi_score(_kernel(), q=q) for q in (0, 1e-6, 0.4, 0.6, 1 - 1e-9, 1, 1 + 1e-9, 1.6, 9, np.inf)]
  assert scores[0] == 4 and scores[1] == pytest.approx(4, abs=1e-4)  # four dimensions
  assert scores[4] == pytest.approx(scores[5], rel=1e-8) == pytest.approx(scores[6], rel=1e-8)
  assert np.all(np.diff(scores) <= 1e-9)


@pytest.mark.parametrize("q", [0, 0.5, 1, 2, np.inf])
def test_vendi_score_counts_equal_kinds(q):
  embeddings = np.repeat(np.eye(3, 500, dtype=np.float32), 4, axis=0)
  assert semantic.vendi_score_of_embeddings(embeddings, q=q) == pytest.approx(3, rel=1e-5)
  assert semantic.vendi_score(np.eye(5), q=q) == pytest.approx(5)
  assert semantic.vendi_score(np.ones((5, 5)), q=q) == pytest.approx(1)


@pytest.mark.parametrize(
  "call",
  [
    lambda: semantic.vendi_score(np.ones((2, 3))),
    lambda: semantic.vendi_score(2 * np.eye(3)),
    lambda: semantic.vendi_score(np.eye(3), q=-1),
    lambda: semantic.vendi_score(np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]])),
    lambda: semantic.mean_pairwise_distance(np.zeros((2, 3))),
    lambda: semantic.unit_rows(np.array([[np.nan, 1.0]])),
  ],
)
def test_what_has_no_score_is_refused(call):
  with pytest.raises(InputError):
    call()


def test_the_encoder_equals_pytorch_in_any_batch_and_order():
  golden = json.loads((FOLDER / "minilm.json").read_text(encoding="utf-8"))
  texts, expected = golden["texts"], np.array(golden["vectors"])
  encode = sentence_encoder.load(batch_size=2)
  for chosen in ([0, 1, 2, 3, 4], [4, 2, 0], [3]):  # the long text alone and with the empty one, full batches and not
    np.testing.assert_allclose(encode([texts[i] for i in chosen]), expected[chosen], atol=1e-6)


def test_an_incomplete_folder_is_named(tmp_path):
  with pytest.raises(InputError, match=r"no model\.safetensors"):
    sentence_encoder.load(tmp_path)
