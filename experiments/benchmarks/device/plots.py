"""Bars of shares of the peak, with the goals."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from experiments.benchmarks.device import page

# File -> (kind, figure of its result, its ceiling, axis label, goal lines).
PLOTS = {
  "mfu.png": ("training", "flops", "flops", "MFU of an update, %", (25, 40)),
  "decode.png": ("decode", "bytes_per_second", "bytes", "share of bandwidth that decoding needs, %", (50,)),
}


def save(records: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[str]:
  """Draws the measurements; the names of the files."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  limits, names = page.ceilings(records), []
  for name, (kind, figure, ceiling, label, lines) in PLOTS.items():
    found = page.of_kind(records, kind)
    shares = [page.share(record["result"][figure], limits, ceiling) for record in found]
    rows = [(f"{r['part'].removesuffix(', more')}: {r['case']}", s) for r, s in zip(found, shares) if s is not None]
    if not rows:
      continue
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(rows)), constrained_layout=True)
    heights = range(len(rows))[::-1]
    axes.barh(heights, [100 * s for _, s in rows], color="#4477aa")
    axes.set_yticks(heights, [case for case, _ in rows], fontsize=8)
    for goal in lines:
      axes.axvline(goal, color="#cc3311", linewidth=1)
    axes.set_xlabel(f"{label} (red: goals)")
    figure.savefig(folder / name, dpi=110)
    pyplot.close(figure)
    names.append(name)
  return names
