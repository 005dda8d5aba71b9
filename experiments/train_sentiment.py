"""Trains the sentiment reward's classifier: `python -m experiments.train_sentiment --data=DIR`.

DIR has `sentiment/sentence_polarity.jsonl.gz` and `sentiment/movie_reviews.jsonl.gz` (film reviews by Pang and Lee,
2004 and 2005, CC BY 4.0). Held out, and in no way used before the end: the last fifth of the sentences, and folds 8
and 9 of the reviews. Two minutes on one core; 256 KB of weights.
"""

import argparse
import gzip
import json
import pathlib
import sys

import numpy as np

from experiments import cli
from qempo_jax.errors import InputError
from qempo_jax.evaluation import intervals
from qempo_jax.rewards import sentiment

SENTENCES = "sentiment/sentence_polarity.jsonl.gz"
REVIEWS = "sentiment/movie_reviews.jsonl.gz"
HELDOUT_FOLDS = (8, 9)
HELDOUT_SHARE = 0.2
NUM_FEATURES = 2**18
SETTINGS = {"l2": 3e-6, "num_steps": 150, "learning_rate": 0.3}


def main(data: pathlib.Path, out: pathlib.Path, *, num_steps: int = SETTINGS["num_steps"]) -> dict:
  """Trains, measures, saves the classifier and, beside it, its figures.

  Args:
    data: the data folder.
    out: the classifier's file.
    num_steps: of the optimiser.

  Returns:
    The figures, as written.

  Raises:
    InputError: a file is absent or is not of that form.
  """
  train, heldout = _split(_rows(data / SENTENCES), _rows(data / REVIEWS))
  features = sentiment.featurize([row["text"] for row in train], NUM_FEATURES)
  labels = np.array([row["label"] for row in train], float)
  classifier = sentiment.fit(features, labels, num_features=NUM_FEATURES, **SETTINGS | {"num_steps": num_steps})
  sentiment.save(classifier, out)
  classifier = sentiment.load(out)  # what is measured is what was saved
  figures = {"train": len(train), "settings": SETTINGS | {"num_steps": num_steps}, "heldout": {}}
  for name, rows in heldout.items():
    logits = sentiment.predict(classifier, sentiment.featurize([row["text"] for row in rows], NUM_FEATURES))
    right = (logits > 0) == np.array([row["label"] for row in rows], bool)
    mean, low, high = intervals.mean_interval(right.astype(float))
    figures["heldout"][name] = {"rows": len(rows), "accuracy": mean, "low": low, "high": high}
  out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
  return figures


def _split(sentences: list[dict], reviews: list[dict]) -> tuple[list[dict], dict[str, list[dict]]]:
  """(training rows, held-out rows by kind); no held-out text is also trained on."""
  first = len(sentences) - int(len(sentences) * HELDOUT_SHARE)
  train = sentences[:first] + [row for row in reviews if row["fold"] not in HELDOUT_FOLDS]
  known = {row["text"] for row in train}
  new = lambda rows: [row for row in rows if row["text"] not in known]
  held = [row for row in reviews if row["fold"] in HELDOUT_FOLDS]
  return train, {"sentences": new(sentences[first:]), "reviews": new(held)}


def _rows(path: pathlib.Path) -> list[dict]:
  try:
    with gzip.open(path, "rt", encoding="utf-8") as file:
      rows = [json.loads(line) for line in file]
    for row in rows:
      row["text"], row["label"], row["fold"] = str(row["text"]), int(row["label"]), row.get("fold")
  except OSError as error:
    raise InputError(f"cannot read {path} ({error.strerror or error}); name the data folder by --data=DIR") from error
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path} has a line without text and label ({error}); use the file as published") from error
  return rows


def _arguments(argv):
  parser = cli.Parser(
    description="Trains the sentiment reward's classifier.",
    epilog="example:\n  python -m experiments.train_sentiment --data=data",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="the data folder")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="the classifier; default: in the user's cache")
  parser.add_argument("--dry_run", action="store_true", help="read the data, print what would be trained, then stop")
  return parser.parse_args(argv)


def describe(data: pathlib.Path, out: pathlib.Path) -> str:
  """The report of --dry_run: rows, memory and settings."""
  train, heldout = _split(_rows(data / SENTENCES), _rows(data / REVIEWS))
  features = sentiment.featurize([row["text"] for row in train], NUM_FEATURES)
  size = sum(part.nbytes for part in (features.indices, features.values, features.rows)) / 2**20
  counts = ", ".join(f"{len(rows)} {name}" for name, rows in heldout.items())
  settings = "\n".join(f"  {name}={value}" for name, value in SETTINGS.items())
  return (
    f"{len(train)} training texts, held out {counts}; {len(features.indices):,} features that are not zero of"
    f" [{len(train)}, {NUM_FEATURES}], {size:.0f} MiB\nThe classifier would be {out}\nSettings:\n{settings}"
  )


def run(argv=None) -> None:
  """The command line; a user's mistake ends in one line and exit code 2."""
  try:
    arguments = _arguments(argv)
    out = arguments.out or sentiment.default_path()
    if arguments.dry_run:
      print(describe(arguments.data, out))
      return
    figures = main(arguments.data, out)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  for name, of in figures["heldout"].items():
    print(
      f"held-out {name}: accuracy {of['accuracy']:.3f} (95 % interval {of['low']:.3f} to {of['high']:.3f},"
      f" {of['rows']} texts)"
    )
  print(f"The classifier is {out}")


if __name__ == "__main__":
  run()
