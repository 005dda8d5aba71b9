"""Tables of the studies on preference pairs from their JSON in docs/results; `experiments.studies.results` writes them.

Figures are means over prompts. Intervals are 95 %, from a bootstrap over prompts, then seeds. Each operating point is compared
with the baseline's whose judge score is nearest. p-values are those of sign flips over prompts, with Holm's correction over the
points of a column that share a baseline. Where runs have a floor it is certified on these prompts, on which no method trained.
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
  """Markdown lines: every operating point on each split, then its differences from the baseline's."""
  floors = {run["changed"]["objective.min_reward"] for run in runs if "objective.min_reward" in run["changed"]}
  lines = []
  for split, name in SPLITS.items():
    split_points = points(runs, split)
    head = f"{name}, {len(split_points[0].prompts)} prompts"
    heads = (head, "seeds", *COLUMNS.values(), *(f"floor of {floor:g}" for floor in floors))
    lines += [""] * bool(lines) + [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for point in split_points:
      shown = [cells.interval(intervals.mean_interval(point.figures[column])) for column in COLUMNS]
      for floor in floors:
        verdict = certificate.certify(point.figures["reward"], constraint="reward", bound=floor, direction="at least")
        shown.append(f"{verdict.verdict} ({verdict.one_sided_bound:.2f})")
      lines.append(f"| {_label(point, split_points)} | {len(point.seeds)} | {' | '.join(shown)} |")
    lines += ["", *_differences(split_points, name)]
  return lines


def _label(point: frontier.Point, split_points: list[frontier.Point]) -> str:
  """The method's name, with its setting where it has several."""
  several = sum(other.method == point.method for other in split_points) > 1
  return pages.label(point.method) + (f", {_setting(point)}" if several else "")


def _setting(point: frontier.Point) -> str:
  return point.label.replace("optimizer.learning_rate", "rate")


def _differences(split_points: list[frontier.Point], name: str) -> list[str]:
  base = [point for point in split_points if point.method == BASELINE]
  several = len(base) > 1
  lines = [
    f"| {name}, less {pages.label(BASELINE)}'s | {' | '.join(COLUMNS[column] for column in COMPARED)} |",
    "|---" * (1 + len(COMPARED)) + "|",
  ]
  others = [point for point in split_points if point.method not in ("base", BASELINE)]
  nearest = [min(base, key=lambda one: abs(one.mean("judge") - point.mean("judge"))) for point in others]
  for point, beside in zip(others, nearest, strict=True):
    family = {"": beside} | {other.label + other.method: other for other, its in zip(others, nearest) if its is beside}
    shown = []
    for column in COMPARED:
      found = comparisons.compare_with("", {key: one.figures[column] for key, one in family.items()})
      c = found[point.label + point.method]
      shown.append(f"{cells.interval(c.difference)}, p {c.adjusted_p_value:.3f}")
    against = f" against {_setting(beside)}" if several else ""
    lines.append(f"| {_label(point, split_points)}{against} | {' | '.join(shown)} |")
  return lines
