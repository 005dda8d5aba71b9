"""One figure: how many times as long the other side of each match takes, with its goal."""

from collections.abc import Mapping
import pathlib

from experiments.benchmarks.bench import arithmetic
from experiments.benchmarks.bench import report


def save(results: Mapping, path: pathlib.Path) -> None:
  """Draws the bars; their whiskers are the range of neighbouring steps' ratios."""
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
  places = range(len(rows))[::-1]
  for place, (_, found, goal) in zip(places, rows):
    whisker = [[max(found.median - found.low, 0)], [max(found.high - found.median, 0)]]
    axes.barh(place, found.median, height=0.6, xerr=whisker, color="#4477aa", ecolor="#222222", capsize=3)
    if goal:
      axes.plot([goal, goal], [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
  axes.set_yticks(list(places), [label for label, *_ in rows])
  axes.axvline(1, color="#bbbbbb", linewidth=1)
  axes.set_xlabel("time of the other side / ours (red: goal)")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
