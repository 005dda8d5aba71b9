"""The finished runs of the countdown study, in a file small enough to keep: every right answer's count, and the curves.

  python -m experiments.studies.countdown_collect countdown_small runs/countdown_small [FURTHER_WORKDIR ...]

Writes docs/results/countdown_small.json; `experiments.studies.results` makes RESULTS.md's tables and the figure of it.
"""

import json
import pathlib
import sys

import numpy as np

from configs import base
from experiments import workdir as workdirs
from qempo_jax.evaluation import functional

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
MEANS = ("entropy", "log_prob", "ref_log_prob", "num_tokens", "truncated")
CURVES = ("reward", "entropy", "kl", "length", "dual/quality/multiplier", "dual/kl/multiplier", "seconds")


def collect(folders: list[pathlib.Path]) -> list[dict]:
  """One dict a run that has a result, in order of name."""
  found = []
  for folder in folders:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for path in sorted((folder / "runs").glob("*/result.json")):
      result = json.loads(path.read_text(encoding="utf-8"))
      own = config[result["method"]]
      found.append({
          **{key: result[key] for key in ("method", "point", "seed", "seconds")},
          "changed": _changed(own, json.loads(base.get_config().to_json_best_effort())),
          "curves": _curves(path.parent / "metrics.jsonl"),
          "puzzles": _puzzles(_lines(path.parent / "samples.jsonl")),
      })
  return found


def _puzzles(rows: list[dict]) -> list[dict]:
  """By puzzle: its split and target, how often each right answer was given, and the means of what samples have."""
  by_puzzle = {}
  for row in rows:
    by_puzzle.setdefault((row["split"], row["set_name"]), []).append(row)
  return [
      {
          "split": split,
          "set_name": set_name,
          "samples": len(group),
          "answers": dict(functional.answer_counts([row["answer"] for row in group])),
          **{name: float(f"{np.mean([row[name] for row in group]):.5g}") for name in MEANS},
      }
      for (split, set_name), group in by_puzzle.items()
  ]


def _curves(path: pathlib.Path) -> dict[str, list[float]]:
  steps = _lines(path) if path.exists() else []
  found = {name: [float(f"{step[name]:.4g}") for step in steps if name in step] for name in CURVES}
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
