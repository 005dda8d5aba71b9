"""Sentiment of a text, by logistic regression over hashed words and word pairs; trained here, without shipped weights.

    z = b + sum_f w_f x_f / |x|       x_f = 1 if the text has feature f

Words and pairs of adjacent words are hashed to one of 2^k features (CRC-32). Train it once:

    python -m experiments.train_sentiment --data=DIR

Source: feature hashing, Weinberger et al., arXiv 0902.2206; words and pairs for sentiment, Wang and Manning,
"Baselines and Bigrams" (ACL 2012).
"""

from collections.abc import Iterable
from collections.abc import Sequence
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import texts

_MAX_CHARS = 20_000  # Read characters of a text, from the start.
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[!?]")


class Classifier(NamedTuple):
  """A trained model.

  Attributes:
    weights: [features] float32, with a power of two of features.
    bias: its constant.
  """

  weights: np.ndarray
  bias: float


class SentimentReward:
  """Probability that a response is positive (or negative), in [0, 1]; 0.5 for one without known words."""

  def __init__(self, *, path: str | os.PathLike | None = None, label: str = "positive"):
    """Loads the classifier.

    Args:
      path: its file; None: `default_path`.
      label: "positive" or "negative".

    Raises:
      InputError: the file does not exist, or is not a classifier.
    """
    if label not in ("positive", "negative"):
      raise InputError(f"sentiment label {label!r}: use 'positive' or 'negative'")
    self._classifier = load(default_path() if path is None else path)
    self._sign = 1.0 if label == "positive" else -1.0
    self.__name__ = f"sentiment({label})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One probability a completion; None if it is not text."""
    del prompts, columns
    read = texts.texts_of(completions)
    logits = predict(self._classifier, featurize([text or "" for text in read], len(self._classifier.weights)))
    probabilities = 0.5 * (1 + np.tanh(0.5 * self._sign * logits))
    return [None if text is None else float(value) for text, value in zip(read, probabilities)]


class Features(NamedTuple):
  """Sparse features of texts.

  Attributes:
    indices: [entries] feature numbers, of all texts, concatenated.
    rows: [entries] the text of each.
    values: [entries] 1 divided by the root of the text's number of features.
    num_rows: number of texts.
  """

  indices: np.ndarray
  rows: np.ndarray
  values: np.ndarray
  num_rows: int


def featurize(documents: Sequence[str], num_features: int) -> Features:
  """Hashes the words and pairs of texts, each counted once per text.

  Args:
    documents: the texts.
    num_features: a power of two.

  Returns:
    Features.
  """
  by_text = [np.fromiter(sorted(_hashes(text, num_features)), np.int64) for text in documents]
  sizes = np.array([len(indices) for indices in by_text], np.int64)
  rows = np.repeat(np.arange(len(by_text)), sizes)
  indices = np.concatenate([*by_text, np.zeros(0, np.int64)])
  return Features(indices, rows, 1 / np.sqrt(np.maximum(sizes, 1))[rows], len(by_text))


def predict(classifier: Classifier, features: Features) -> np.ndarray:
  """[texts] log odds of being positive."""
  entries = classifier.weights[features.indices] * features.values
  return np.bincount(features.rows, entries, minlength=features.num_rows) + classifier.bias * (
    np.bincount(features.rows, minlength=features.num_rows) > 0
  )


def fit(
  features: Features, labels: np.ndarray, *, num_features: int, l2: float, num_steps: int, learning_rate: float
) -> Classifier:
  """Minimises the mean logistic loss + l2 |w|^2 / 2 by full-batch Adam; deterministic.

  Args:
    features: features of the training texts.
    labels: [texts] 1 positive, 0 negative.
    num_features: as in `featurize`.
    l2: weight of the penalty.
    num_steps: steps of Adam, whose learning rate falls linearly to 0.
    learning_rate: learning rate of the first step.

  Returns:
    The classifier.
  """
  weights, first, second = (np.zeros(num_features + 1) for _ in range(3))
  for step in range(1, num_steps + 1):
    logits = predict(Classifier(weights[:-1], weights[-1]), features)
    error = (0.5 * (1 + np.tanh(0.5 * logits)) - labels) / len(labels)
    gradient = np.append(
      np.bincount(features.indices, features.values * error[features.rows], minlength=num_features) + l2 * weights[:-1],
      error.sum(),
    )
    first = 0.9 * first + 0.1 * gradient
    second = 0.99 * second + 0.01 * gradient**2
    scale = learning_rate * (1 - step / num_steps)
    weights -= scale * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-10)
  return Classifier(weights[:-1].astype(np.float32), float(weights[-1]))


def default_path() -> pathlib.Path:
  """Default file of the classifier: `sentiment.npz` in QEMPO_CACHE_DIR or the user's cache."""
  from qempo_jax.models import demo_model

  return demo_model.cache_dir() / "sentiment.npz"


def save(classifier: Classifier, path: str | os.PathLike) -> None:
  """Writes a classifier; a crash leaves the former file intact."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_name(f".{path.name}.{os.getpid()}.npz")
  np.savez_compressed(scratch, weights=classifier.weights.astype(np.float16), bias=classifier.bias)
  os.replace(scratch, path)


def load(path: str | os.PathLike) -> Classifier:
  """Reads a classifier; raises InputError if there is none."""
  try:
    with np.load(path, allow_pickle=False) as file:
      weights, bias = file["weights"].astype(np.float32), float(file["bias"])
  except FileNotFoundError as error:
    raise InputError(
      f"there is no sentiment classifier {path}: train it by python -m experiments.train_sentiment --data=DIR"
    ) from error
  except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
    raise InputError(f"{path} is not a sentiment classifier ({error}); remove it and train again") from error
  if weights.ndim != 1 or len(weights) & (len(weights) - 1) or not np.isfinite([*weights, bias]).all():
    raise InputError(
      f"{path} is not a sentiment classifier: its weights are {weights.shape}; remove it and train again"
    )
  return Classifier(weights, bias)


def _hashes(text: str, num_features: int) -> Iterable[int]:
  words = _WORD.findall(text[:_MAX_CHARS].lower())
  grams = [*words, *(f"{one} {two}" for one, two in zip(words, words[1:]))]
  return {zlib.crc32(gram.encode("utf-8", "replace")) & (num_features - 1) for gram in grams}
