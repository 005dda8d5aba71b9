"""The sentiment classifier: its gradient's optimum, its file, and its accuracy on reviews it has not seen."""

import gzip
import json

import numpy as np
import pytest

from experiments import train_sentiment
from qempo_jax.errors import InputError
from qempo_jax.rewards import sentiment
from tests.rewards import real_answers

GOOD = ["a wonderful , moving film", "great acting and a great story", "i loved it"]
BAD = ["a dull and stupid mess", "terrible acting , bad story", "i hated it"]


@pytest.fixture(scope="module")
def classifier():
  features = sentiment.featurize(GOOD + BAD, 1024)
  labels = np.array([1.0] * 3 + [0.0] * 3)
  return sentiment.fit(features, labels, num_features=1024, l2=1e-3, num_steps=400, learning_rate=0.3)


def test_words_and_pairs_count_once_and_case_does_not_matter():
  features = sentiment.featurize(["Good film"], 2**18)
  assert len(features.indices) == 3
  np.testing.assert_allclose(features.values, 1 / np.sqrt(3))
  both = sentiment.featurize(["Good film", "good film good film"], 2**18)
  assert set(both.indices[both.rows == 0]) < set(both.indices[both.rows == 1])


def test_the_fit_is_a_stationary_point_of_the_loss(classifier):
  features = sentiment.featurize(GOOD + BAD, 1024)
  labels = np.array([1.0] * 3 + [0.0] * 3)

  def loss(weights, bias):
    z = sentiment.predict(sentiment.Classifier(weights, bias), features)
    return np.mean(np.log1p(np.exp(-(2 * labels - 1) * z))) + 0.5e-3 * np.sum(weights**2)

  weights, bias = classifier.weights.astype(float), classifier.bias
  for index in [*np.unique(features.indices)[:10], 0]:
    step = np.zeros_like(weights)
    step[index] = 1e-4
    slope = (loss(weights + step, bias) - loss(weights - step, bias)) / 2e-4
    assert abs(slope) < 1e-4, index
  assert abs(loss(weights, bias + 1e-4) - loss(weights, bias - 1e-4)) / 2e-4 < 1e-4


def test_it_is_saved_loaded_and_scores_both_labels(classifier, tmp_path):
  path = tmp_path / "folder" / "classifier.npz"
  sentiment.save(classifier, path)
  assert [file.name for file in path.parent.iterdir()] == ["classifier.npz"]
  positive = sentiment.SentimentReward(path=path)
  negative = sentiment.SentimentReward(path=path, label="negative")
  texts = [*GOOD, *BAD, "", "?"]
  scores = positive([""] * 8, texts)
  assert min(scores[:3]) > 0.6 and max(scores[3:6]) < 0.4 and scores[6] == 0.5
  np.testing.assert_allclose(negative([""] * 8, texts), 1 - np.array(scores), atol=1e-12)


def test_a_file_that_is_absent_or_no_classifier_is_named(tmp_path):
  with pytest.raises(InputError, match="train it by python -m experiments.train_sentiment"):
    sentiment.SentimentReward(path=tmp_path / "none.npz")
  (tmp_path / "text.npz").write_text("no")
  np.savez(tmp_path / "other.npz", weights=np.zeros((3, 3)), bias=0.0)
  for name in ("text.npz", "other.npz"):
    with pytest.raises(InputError, match="(no|not a) sentiment classifier"):
      sentiment.SentimentReward(path=tmp_path / name)


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with gzip.open(path, "wt", encoding="utf-8") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)


def made_data(folder):
  """Small data of the real files' form, in which one word tells; held-out texts that were trained on are left out."""
  rng = np.random.default_rng(0)
  words = lambda: [*rng.permutation(["film", "the", "of", "plot"]), str(rng.integers(99))]
  text = lambda label: " ".join([["awful", "lovely"][label], *words()])
  rows = [{"text": text(i % 2), "label": i % 2} for i in range(200)]
  rows[-1] = rows[0]
  write(folder / train_sentiment.SENTENCES, rows)
  reviews = [{"id": i, "text": text(i % 2), "label": i % 2, "fold": i % 10} for i in range(100)]
  write(folder / train_sentiment.REVIEWS, reviews)


def test_the_command_trains_measures_and_says_so(tmp_path, capsys):
  made_data(tmp_path)
  train_sentiment.run([f"--data={tmp_path}", f"--out={tmp_path / 'out' / 's.npz'}"])
  assert "held-out reviews: accuracy 1.000" in capsys.readouterr().out
  figures = json.loads((tmp_path / "out" / "s.json").read_text())
  assert figures["train"] == 160 + 80 and figures["heldout"]["sentences"]["rows"] <= 39
  assert figures["heldout"]["sentences"]["accuracy"] == 1.0


def test_the_command_names_a_missing_file(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    train_sentiment.run([f"--data={tmp_path}", f"--out={tmp_path / 's.npz'}"])
  assert stop.value.code == 2 and "sentence_polarity" in capsys.readouterr().err


@pytest.mark.slow
def test_on_real_reviews_it_is_as_good_as_words_and_pairs_are(tmp_path):
  folder = real_answers.data_file(train_sentiment.SENTENCES).parents[1]
  heldout = train_sentiment.main(folder, tmp_path / "s.npz")["heldout"]
  assert (heldout["sentences"]["rows"], heldout["reviews"]["rows"]) == (2132, 400)
  assert heldout["sentences"]["low"] > 0.73 and heldout["reviews"]["low"] > 0.82
