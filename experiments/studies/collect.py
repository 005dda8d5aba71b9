"""Collects the finished runs of a frontier with a language model in one small file: figures per prompt, and curves.

  python -m experiments.studies.collect countdown_small runs/countdown_small [FURTHER_WORKDIR ...]

Writes docs/results/countdown_small.json, from which `experiments.studies.results` makes RESULTS.md's tables and figure.
A puzzle keeps the count of each right answer. Other prompts keep the diversity of their samples, which needs spaCy and
the sentence encoder.
"""

import json
import pathlib
import sys

import numpy as np

from configs import base
from experiments.run import metrics_file
from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import sentence_encoder
from qempo_jax.evaluation import syntactic
from qempo_jax.paths import write_atomically

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
MEANS = ("entropy", "log_prob", "ref_log_prob", "num_tokens", "truncated")
SCORES = ("reward", "judge")
METRICS = ("distinct_2", "self_bleu", "semantic_distance", "vendi", "syntactic_distance")
CURVES = ("reward", "entropy", "kl", "length", "dual/quality/multiplier", "dual/kl/multiplier", "seconds")


def collect(folders: list[pathlib.Path]) -> list[dict]:
  """Returns one dict per run that has a result, in order of name."""
  runs = []
  for folder in folders:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for path in sorted((folder / "runs").glob("*/result.json")):
      result = json.loads(path.read_text(encoding="utf-8"))
      run_config, rows = config[result["method"]], _lines(path.parent / "samples.jsonl")
      runs.append(
        {
          **{key: result[key] for key in ("method", "point", "seed", "seconds")},
          "changed": _changed(run_config, json.loads(base.get_config().to_json_best_effort())),
          "curves": _curves(path.parent / metrics_file.NAME),
          **({"puzzles": _puzzles(rows)} if rows[0]["set_name"] else {"prompts": _prompts(rows)}),
        }
      )
  return runs


def _puzzles(rows: list[dict]) -> list[dict]:
  """By puzzle: its split and target, the count of each right answer, and means over its samples."""
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
  """By prompt: its split and first words, means over its samples, and the diversity of their texts."""
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
  """A metric of a prompt's samples; its worst value if it is undefined for them."""
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
  curves = {name: [float(f"{step[name]:.4g}") for step in steps if step.get(name) is not None] for name in CURVES}
  return {name: values for name, values in curves.items() if values}


def _changed(values: dict, defaults: dict, prefix: str = "") -> dict:
  """The keys whose values differ from base.py's, flattened."""
  changed = {}
  for key, value in values.items():
    if isinstance(value, dict):
      changed |= _changed(value, defaults[key], f"{prefix}{key}.")
    elif value != defaults[key]:
      changed[f"{prefix}{key}"] = value
  return changed


def _lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(name: str, *folders: str) -> None:
  """Collects the runs and writes the file."""
  runs, out = collect([pathlib.Path(folder) for folder in folders]), RESULTS / f"{name}.json"
  write_atomically(out, "[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
  print(f"{len(runs)} runs in {out}")


if __name__ == "__main__":
  main(*sys.argv[1:])
