"""Tables of the study on preference pairs from its JSON in docs/results; `experiments.studies.results` writes them.

Figures are means over prompts. Intervals are 95 %, from a bootstrap over prompts, then seeds. p-values are those of
sign flips over prompts, with Holm's correction over the methods of a column. The floor is certified on these prompts,
on which no method trained.
"""

import numpy as np

from experiments.studies import cells
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import frontier
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import pages

COLUMNS = {
    "judge": "judge", "reward": "the floor's reward", "distinct_2": "distinct-2", "semantic_distance": "semantic",
    "syntactic_distance": "syntactic", "entropy": "entropy (nats)", "kl": "KL (nats)", "num_tokens": "length",
    "truncated": "truncated",
}  # fmt: skip
COMPARED = ("judge", "distinct_2", "semantic_distance", "syntactic_distance", "entropy")
SPLITS = {"noveltybench_curated.jsonl": "NoveltyBench", "question.jsonl": "MT-Bench"}
BASELINE = "dpo"


def points(runs: list[dict], split: str) -> list[frontier.Point]:
  """Returns the operating points on one split's prompts, with seeds side by side, in the order of `cells.place`."""
  rows = []
  for run in sorted(runs, key=lambda run: (cells.place(run["method"]), run["method"], run["point"], run["seed"])):
    chosen = [prompt for prompt in run["prompts"] if prompt["split"] == split]
    figures = {name: [prompt[name] for prompt in chosen] for name in COLUMNS if name != "kl"}
    figures["kl"] = [prompt["log_prob"] - prompt["ref_log_prob"] for prompt in chosen]
    of_prompts = {name: np.asarray(values, float)[:, None] for name, values in figures.items()}
    labels = {key: run[key] for key in ("method", "point", "seed")}
    rows.append(labels | {"prompts": [prompt["prompt"] for prompt in chosen], "figures": of_prompts})
  return frontier.points(rows)


def tables(runs: list[dict]) -> list[str]:
  """Markdown lines: every method on each split, then its differences from the baseline."""
  floor = next(run["changed"]["objective.min_reward"] for run in runs if "objective.min_reward" in run["changed"])
  lines = []
  for split, name in SPLITS.items():
    split_points = points(runs, split)
    head = f"{name}, {len(split_points[0].prompts)} prompts"
    heads = (head, "seeds", *COLUMNS.values(), f"floor of {floor:g}")
    lines += [""] * bool(lines) + [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for point in split_points:
      shown = [cells.interval(intervals.mean_interval(point.figures[column])) for column in COLUMNS]
      verdict = certificate.certify(point.figures["reward"], constraint="reward", bound=floor, direction="at least")
      shown.append(f"{verdict.verdict} ({verdict.one_sided_bound:.2f})")
      lines.append(f"| {pages.label(point.method)} | {len(point.seeds)} | {' | '.join(shown)} |")
    lines += ["", *_differences(split_points, name)]
  return lines


def _differences(split_points: list[frontier.Point], name: str) -> list[str]:
  trained = {pages.label(point.method): point for point in split_points if point.method != "base"}
  base = pages.label(BASELINE)
  lines = [
    f"| {name}, less {base}'s | {' | '.join(COLUMNS[column] for column in COMPARED)} |",
    "|---" * (1 + len(COMPARED)) + "|",
  ]
  compared = {
    column: comparisons.compare_with(base, {label: point.figures[column] for label, point in trained.items()})
    for column in COMPARED
  }
  for label in trained:
    if label != base:
      shown = [compared[column][label] for column in COMPARED]
      lines.append(
        f"| {label} | {' | '.join(f'{cells.interval(c.difference)}, p {c.adjusted_p_value:.3f}' for c in shown)} |"
      )
  return lines
