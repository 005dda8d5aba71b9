"""Makes metrics.json: evaluation figures by other people's programs, for fixed texts and numbers.

pip install nltk sacrebleu scikit-learn scipy && pip install --no-deps vendi-score
python tests/golden/make_metric_goldens.py
"""

import gzip
import json
import pathlib

from nltk.tokenize import WordPunctTokenizer
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu
from nltk.util import ngrams
import numpy as np
import sacrebleu
from scipy import special
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_distances
from vendi_score import vendi

OUTPUT = pathlib.Path(__file__).with_name("metrics.json")

TEXTS = [
  "The quick brown fox jumps over the lazy dog.",
  "A quick brown dog jumps over the lazy fox!",
  "The fox, the fox, the fox: it jumps and it jumps.",
  "Rain fell on the harbour all night long.",
  "Rain fell on the harbour all night long, and the boats were quiet.",
  "Boats. Quiet boats.",
  "Don't stop -- 3.14 is (nearly) pi; isn't it?",
  "Caf\u00e9 na\u00efve \u00dcber \u65e5\u672c\u8a9e text.",
  "quick",
  "The quick brown fox jumps over the lazy dog.",
]


def bleu():
  tokens = [[token.lower() for token in WordPunctTokenizer().tokenize(text)] for text in TEXTS]
  method = SmoothingFunction().method1
  found = {
    str(order): [
      sentence_bleu(tokens[:i] + tokens[i + 1 :], tokens[i], (1 / order,) * order, smoothing_function=method)
      for i in range(len(tokens))
    ]
    for order in (2, 3, 4)
  }
  # sacrebleu on the texts of four words or more whose n-grams all occur elsewhere too, so that no smoothing enters.
  kept = [0, 1, 3, 4, 9]
  texts = [" ".join(tokens[i]) for i in kept]
  scorer = sacrebleu.BLEU(tokenize="none", smooth_method="none", effective_order=False)
  sacre = [scorer.sentence_score(texts[i], texts[:i] + texts[i + 1 :]).score / 100 for i in range(len(texts))]
  return {"texts": TEXTS, "tokens": tokens, "nltk": found, "sacrebleu_of": kept, "sacrebleu": sacre}


def distinct():
  found = {}
  for n in (1, 2, 3):
    grams = [g for text in TEXTS for g in ngrams([t.lower() for t in WordPunctTokenizer().tokenize(text)], n)]
    found[str(n)] = len(set(grams)) / len(grams)
  return found


def embeddings():
  rows = np.random.default_rng(0).normal(size=(7, 4)).round(3)
  rows[3] = rows[2]
  unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  kernel = unit @ unit.T
  distances = cosine_distances(rows)
  return {
    "rows": rows.tolist(),
    "mean_pairwise": float(distances[~np.eye(7, dtype=bool)].mean() / 2),
    # Orders below 1 come from the eigenvalues of the dual matrix, whose none is zero here.
    "vendi": {str(q): float(vendi.score_K(kernel, q=q)) for q in (1, 2, 3.5, 10, "inf")},
    "vendi_dual": {str(q): float(vendi.score_dual(rows, q=q)) for q in (0.1, 0.5, 1, 2)},
  }


def bootstrap():
  values = np.random.default_rng(1).gamma(2, 1, 30).round(3)
  found = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="percentile", random_state=0)
  return {"values": values.tolist(), "low": found.confidence_interval.low, "high": found.confidence_interval.high}


def logistic():
  rng = np.random.default_rng(2)
  lengths = rng.normal(30, 100, 60).round()
  wins = (rng.random(60) < special.expit(0.3 + 0.8 * np.tanh(lengths / 100))).astype(int)
  feature = np.tanh(lengths / lengths.std())[:, None]
  # scikit-learn's penalty on the slope is w^2 / (2C).
  model = LogisticRegression(C=100.0, tol=1e-12, max_iter=10_000).fit(feature, wins)
  return {"lengths": lengths.tolist(), "wins": wins.tolist(), "rate": float(special.expit(model.intercept_[0]))}


def others():
  p_values = [0.01, 0.04, 0.03, 0.005, 0.5]
  differences = np.random.default_rng(3).normal(0.5, 1, 9).round(3)
  test = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
  counts, total, size = [5, 1, 1, 9, 4], 20, 6
  return {
    "holm": {"p_values": p_values, "adjusted": [0.04, 0.09, 0.09, 0.025, 0.5]},
    "sign_flip": {"differences": differences.tolist(), "p_value": float(test.pvalue)},
    "rarefied": {
      "counts": counts, "total": total, "size": size,
      "types": sum(1 - stats.hypergeom(total, c, size).pmf(0) for c in counts),
    },
    "pass_at_k": {
      f"{n},{c},{k}": float(1 - stats.hypergeom(n, c, k).pmf(0))
      for n, c, k in [(10, 3, 1), (10, 3, 4), (64, 1, 64), (64, 5, 8), (200, 20, 100), (5, 0, 3), (5, 5, 1)]
    },
    "gzip": len(" ".join(TEXTS).encode()) / len(gzip.compress(" ".join(TEXTS).encode(), 9, mtime=0)),
  }  # fmt: skip


if __name__ == "__main__":
  golden = {"bleu": bleu(), "distinct": distinct(), "embeddings": embeddings(), "bootstrap": bootstrap()}
  golden |= {"logistic": logistic(), "others": others()}
  OUTPUT.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
