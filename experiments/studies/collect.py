"""The finished runs of a frontier with a language model, in a file small enough to keep: figures of every prompt, and the curves.

  python -m experiments.studies.collect countdown_small runs/countdown_small [FURTHER_WORKDIR ...]

Writes docs/results/countdown_small.json, of which `experiments.studies.results` makes RESULTS.md's tables and figure. Puzzles
keep how often each right answer was given, other prompts the diversity of their samples: that needs spaCy and the encoder.
"""

import json
import pathlib
import sys

import numpy as np

from configs import base
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import sentence_encoder
from qempo_jax.evaluation import syntactic

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
MEANS = ("entropy", "log_prob", "ref_log_prob", "num_tokens", "truncated")
SCORES = ("reward", "judge")
METRICS = ("distinct_2", "self_bleu", "semantic_distance", "vendi", "syntactic_distance")
CURVES = ("reward", "entropy", "kl", "length", "dual/quality/multiplier", "dual/kl/multiplier", "seconds")


def collect(folders: list[pathlib.Path]) -> list[dict]:
  """One dict a run that has a result, in order of name."""
  found = []
  for folder in folders:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for path in sorted((folder / "runs").glob("*/result.json")):
      result = json.loads(path.read_text(encoding="utf-8"))
      own, rows = config[result["method"]], _lines(path.parent / "samples.jsonl")
      found.append(
        {
          **{key: result[key] for key in ("method", "point", "seed", "seconds")},
          "changed": _changed(own, json.loads(base.get_config().to_json_best_effort())),
          "curves": _curves(path.parent / metrics_file.NAME),
          **({"puzzles": _puzzles(rows)} if rows[0]["set_name"] else {"prompts": _prompts(rows)}),
        }
      )
  return found


def _puzzles(rows: list[dict]) -> list[dict]:
  """By puzzle: its split and target, how often each right answer was given, and the means of what samples have."""
  return [
    {
      "split": split,
      "set_name": set_name,
      "samples": len(group),
      "answers": dict(functional.answer_counts([row["answer"] for row in group])),
      **_means(group, MEANS),
    }
    for (split, set_name), group in _grouped(rows, "set_name").items()
  ]


def _prompts(rows: list[dict]) -> list[dict]:
  """By prompt: its split and first words, the means of what samples have, and the diversity of their texts."""
  metrics = diversity_metrics.metrics(
    [row["completion"] for row in rows], embed=sentence_encoder.load(), parse=syntactic.parse_with_spacy
  )
  return [
    {
      "split": split,
      "prompt": prompt[:60],
      "samples": len(group),
      **_means(group, MEANS + SCORES),
      **{name: _diversity(metrics[name], [row["completion"] for row in group]) for name in METRICS},
    }
    for (split, prompt), group in _grouped(rows, "prompt").items()
  ]


def _diversity(metric, texts: list[str]) -> float:
  """A metric of a prompt's samples; its least value where they have none."""
  value = metric.function(lexical.encode(texts) if metric.of_tokens else texts)
  return _short(value if np.isfinite(value) else metric.worst)


def _grouped(rows: list[dict], key: str) -> dict[tuple[str, str], list[dict]]:
  groups = {}
  for row in rows:
    groups.setdefault((row["split"], row[key]), []).append(row)
  return groups


def _means(group: list[dict], names) -> dict[str, float]:
  return {name: _short(np.mean([row[name] for row in group])) for name in names}


def _short(value) -> float:
  return float(f"{value:.5g}")


def _curves(path: pathlib.Path) -> dict[str, list[float]]:
  steps = metrics_file.read(path)
  found = {name: [float(f"{step[name]:.4g}") for step in steps if step.get(name) is not None] for name in CURVES}
  return {name: values for name, values in found.items() if values}


def _changed(own: dict, defaults: dict, start: str = "") -> dict:
  """The keys whose values are not base.py's, flat."""
  found = {}
  for key, value in own.items():
    if isinstance(value, dict):
      found |= _changed(value, defaults[key], f"{start}{key}.")
    elif value != defaults[key]:
      found[f"{start}{key}"] = value
  return found


def _lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(name: str, *folders: str) -> None:
  """Collects and writes."""
  runs, out = collect([pathlib.Path(folder) for folder in folders]), RESULTS / f"{name}.json"
  workdirs.write_atomically(out, "[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
  print(f"{len(runs)} runs in {out}")


if __name__ == "__main__":
  main(*sys.argv[1:])
