"""Markdown rows of a report's results.json, for README and RESULTS.

python -m experiments.studies.results_table docs/results/open_list_study.json
"""

import json
import pathlib
import sys

from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS


def rows(results) -> list[str]:
  """One row per split and method: means with intervals, and the certificate of the quality floor with its bound."""
  lines = []
  for split, split_label in SPLIT_LABELS.items():
    for method, entry in results["methods"].items():
      if figures := entry["splits"].get(split):
        lines.append(_row(f"{split_label} ({figures['num_prompts']})", METHOD_LABELS.get(method, method), figures))
  return lines


def exact_rows(results) -> list[str]:
  """One row per split and method with exact figures: P(acceptable), answers, and the parts of the entropy."""
  names = ("acceptable", "effective_answers", "distinct@64", "entropy_accept", "entropy_right", "entropy_wrong")
  lines = []
  for split, split_label in SPLIT_LABELS.items():
    for method, entry in results["methods"].items():
      if exact := entry["splits"].get(split, {}).get("exact"):
        cells = [
          f"{split_label}, exact",
          METHOD_LABELS.get(method, method),
          *(_interval(exact[name]) for name in names),
        ]
        lines.append(f"| {' | '.join(cells)} |")
  return lines


def exact_comparisons(results) -> list[str]:
  """One row per split and method with exact figures: effective answers and P(acceptable) against the baseline's."""
  return [
    _compared(f"{SPLIT_LABELS[split]}, exact", method, pair, pair["exact"], "acceptable_difference")
    for split, by_method in results["comparisons"].items()
    for method, pair in by_method.items()
    if pair.get("exact")
  ]


def comparisons(results) -> list[str]:
  """One row per split and method: effective answers and reward against the baseline's."""
  return [
    _compared(f"{SPLIT_LABELS[split]} ({pair['num_prompts']})", method, pair, pair, "reward_difference")
    for split, by_method in results["comparisons"].items()
    for method, pair in by_method.items()
    if method != "base"
  ]


def _compared(split, method, pair, figures, difference) -> str:
  """The row of a method's figures against its baseline's; seeds are left out where the two have different ones."""
  ratio = figures["effective_answers_ratio"]
  cells = [
    split,
    f"{METHOD_LABELS.get(method, method)} / {METHOD_LABELS.get(pair['baseline'], pair['baseline'])}",
    _interval(ratio),
    ", ".join(f"{value:.2f}" for value in ratio.get("by_seed") or ()),
    _interval(figures[difference]),
  ]
  return f"| {' | '.join(cells)} |"


def _row(split, method, figures) -> str:
  certificate = figures["certificates"][0]
  cells = [
    split,
    method,
    _interval(figures["reward"]),
    _interval(figures["effective_answers"]),
    *(f"{figures[name]['mean']:.2f}" for name in ("entropy", "kl")),
    f"{figures['length']['mean']:.1f}",
    f"{figures['truncation']['mean']:.0%}",
    f"{certificate['verdict']} ({certificate['one_sided_bound']:.3f})",
  ]
  return f"| {' | '.join(cells)} |".replace("| -0.00 |", "| 0.00 |")


def _interval(figure) -> str:
  return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


if __name__ == "__main__":
  for path in sys.argv[1:]:
    report = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    print(*rows(report), "", *comparisons(report), "", *exact_rows(report), "", *exact_comparisons(report), sep="\n")
