"""Tables and figure of a countdown study from its JSON in docs/results; `experiments.studies.results` writes them.

Figures are means over puzzles; intervals are 95 %, from a bootstrap over puzzles, then seeds.
"""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from experiments.studies import cells
from qempo_jax.evaluation import frontier
from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import pages
from qempo_jax.evaluation import plots
from qempo_jax.evaluation import solutions

DRAWS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = {
    "reward": "reward", "pass@8": "pass@8", "pass@64": "pass@64", "distinct@64": "different right answers of 64",
    "effective_answers": "effective answers", "entropy": "entropy (nats)", "kl": "KL (nats)", "num_tokens": "length",
    "truncated": "truncated",
}  # fmt: skip
BASELINES = ("grpo", "dpo")  # candidates for the baseline; a study has one of them


def points(runs: list[dict], split: str) -> list[frontier.Point]:
  """Returns the operating points on one split's puzzles, with seeds side by side, in the order of `cells.place`."""
  rows = [
    {
      **{key: run[key] for key in ("method", "point", "seed")},
      "prompts": [puzzle["set_name"] for puzzle in run["puzzles"] if puzzle["split"] == split],
      "figures": _figures([puzzle for puzzle in run["puzzles"] if puzzle["split"] == split]),
    }
    for run in sorted(runs, key=lambda run: (cells.place(run["method"]), run["method"], run["point"], run["seed"]))
  ]
  return frontier.points(rows)


def _figures(puzzles: list[dict]) -> dict[str, np.ndarray]:
  """Figures by name, [puzzles, 1]."""
  figures = {name: [puzzle[name] for puzzle in puzzles] for name in ("entropy", "num_tokens", "truncated")}
  figures["kl"] = [puzzle["log_prob"] - puzzle["ref_log_prob"] for puzzle in puzzles]
  counts = [np.array(list(puzzle["answers"].values()), float) for puzzle in puzzles]
  samples, right = np.array([puzzle["samples"] for puzzle in puzzles]), np.array([int(count.sum()) for count in counts])
  figures["reward"] = right / samples
  share = [count / max(1.0, count.sum()) for count in counts]
  figures["effective_answers"] = [np.exp(-np.sum(p * np.log(p))) if len(p) else 0.0 for p in share]
  for k in DRAWS:
    figures[f"pass@{k}"] = solutions.pass_at_k(samples, right, k=k)
    pairs = zip(counts, samples, strict=True)
    figures[f"distinct@{k}"] = [functional.rarefied_types(count, total=int(n), size=k) for count, n in pairs]
  return {name: np.asarray(values, float)[:, None] for name, values in figures.items()}


def chosen(runs: list[dict]) -> dict[str, str]:
  """Label of each method's point with the most distinct right answers of 64 on the validation puzzles, seed 0."""
  first = points([run for run in runs if run["seed"] == 0], "validation")
  best = {}
  for point in first:
    if point.method not in best or point.mean("distinct@64") > best[point.method].mean("distinct@64"):
      best[point.method] = point
  return {method: point.label for method, point in best.items()}


def tables(runs: list[dict]) -> list[str]:
  """Markdown lines: the choice on validation puzzles, the chosen points, and their differences from the baseline."""
  labels, lines = chosen(runs), []
  lines += ["| method | point | seeds | reward | different right answers of 64 | |", "|---" * 6 + "|"]
  for point in points(runs, "validation"):
    shown = [f"{point.mean(name):.3f}" for name in ("reward", "distinct@64")]
    mark = "chosen" if labels.get(point.method) == point.label else ""
    lines.append(f"| {pages.label(point.method)} | {point.label} | {len(point.seeds)} | {' | '.join(shown)} | {mark} |")
  splits = {puzzle["split"] for run in runs for puzzle in run["puzzles"]}
  for split in (split for split in ("heldout", "train") if split in splits):
    lines += ["", f"| {split} | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    chosen_points = [point for point in points(runs, split) if labels.get(point.method) == point.label]
    for point in chosen_points:
      shown = [cells.interval(intervals.mean_interval(point.figures[name])) for name in COLUMNS]
      lines.append(f"| {pages.label(point.method)} | {len(point.seeds)} | {' | '.join(shown)} |")
    if compared := _differences(chosen_points, split):
      lines += ["", *compared]
  return lines


def _differences(chosen_points: list[frontier.Point], split: str) -> list[str]:
  """Differences of each method from the baseline, over the seeds that both have."""
  baseline = next((point for point in chosen_points if point.method in BASELINES), None)
  if baseline is None:
    return []
  lines = [
    f"| {split}, less {pages.label(baseline.method)}'s | reward | pass@64 | different right answers of 64 | entropy (nats) |",
    "|---" * 5 + "|",
  ]
  for point in chosen_points:
    if point.method in ("base", baseline.method):
      continue
    both = [seed for seed in point.seeds if seed in baseline.seeds]
    take = lambda p, name, both=both: p.figures[name][:, [p.seeds.index(seed) for seed in both]]
    names = ("reward", "pass@64", "distinct@64", "entropy")
    shown = [cells.interval(intervals.paired_difference(take(point, name), take(baseline, name))) for name in names]
    lines.append(f"| {pages.label(point.method)} | {' | '.join(shown)} |")
  return lines


def picture(runs: list[dict]) -> bytes:
  """Draws pass@k and distinct right answers against k on held-out puzzles, one line per method; PNG bytes."""
  canvas = FigureCanvasAgg(Figure(figsize=(6.4, 8.0), dpi=150, layout="constrained"))
  axes, labels = canvas.figure.subplots(2, 1), chosen(runs)
  chosen_points = [point for point in points(runs, "heldout") if labels.get(point.method) == point.label]
  for axis, (name, label) in zip(axes, (("pass", "pass@k"), ("distinct", "Different right answers of k")), strict=True):
    ends = []
    for point in chosen_points:
      colour, marker = frontier_page.style(point.method)
      values = [point.mean(f"{name}@{k}") for k in DRAWS]
      axis.plot(DRAWS, values, marker=marker, color=colour, linewidth=1.2, markersize=4)
      ends.append((values[-1], pages.label(point.method), colour))
    _name_ends(axis, sorted(ends))
    axis.set_xscale("log", base=2)
    axis.set_xticks(DRAWS, [str(k) for k in DRAWS])
    axis.set_xlabel("k, samples drawn")
    axis.set_ylabel(label)
    axis.set_xlim(0.9, 160)
    axis.spines[["top", "right"]].set_visible(False)
  axes[0].set_title("Countdown, held-out targets", loc="left", fontsize=10)
  return plots.png(canvas)


def _name_ends(axis, ends) -> None:
  """Writes labels at the lines' ends, spaced apart."""
  low, high = axis.get_ylim()
  height, gap = low, (high - low) * 0.05
  for value, label, colour in ends:
    height = max(value, height + gap)
    axis.annotate(label, (DRAWS[-1], value), xytext=(70, height), color=colour, fontsize=8, va="center")
