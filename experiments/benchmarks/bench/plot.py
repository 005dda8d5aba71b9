"""The benchmark's figure: the ratio of times of each match, with its goal."""

from collections.abc import Mapping
import pathlib

from experiments.benchmarks.bench import arithmetic
from experiments.benchmarks.bench import report


def save(results: Mapping, path: pathlib.Path) -> None:
  """Draws the ratios as bars; whiskers are the range of neighbouring steps' ratios."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  rows = [
    (
      f"{name}: {match['other']} / {match['ours']}",
      arithmetic.ratio(*(report.seconds(match, s) for s in ("ours", "other"))),
      match["goal"],
    )
    for name, entry in results.items()
    for match in entry.get("matches", ())
  ]
  figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.4 * len(rows)), constrained_layout=True)
  heights = range(len(rows))[::-1]
  for y, (_, ratio, goal) in zip(heights, rows):
    whisker = [[max(ratio.median - ratio.low, 0)], [max(ratio.high - ratio.median, 0)]]
    axes.barh(y, ratio.median, height=0.6, xerr=whisker, color="#4477aa", ecolor="#222222", capsize=3)
    if goal:
      axes.plot([goal, goal], [y - 0.4, y + 0.4], color="#cc3311", linewidth=2)
  axes.set_yticks(list(heights), [label for label, *_ in rows])
  axes.axvline(1, color="#bbbbbb", linewidth=1)
  axes.set_xlabel("time of the other side / ours (red: goal)")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
