"""Draws the errors of the exactness study against their tolerances."""

import pathlib

import numpy as np

SMALLEST = 1e-6  # errors below are drawn here
TITLES = {
  "entropy": "entropy, relative",
  "reward": "floor, |E[r] - R|",
  "kl": "budget, |KL - K|, nats",
  "coherence": "coherence, |C - bound|, nats",
  "quality_multiplier": "lambda, relative",
  "kl_multiplier": "mu, relative",
  "coherence_multiplier": "nu, relative",
}
COLORS = {"table": "tab:blue", "transformer": "tab:orange"}


def draw(cells: list[dict], tolerances: dict[str, float], path: pathlib.Path) -> None:
  """One row of panels a tier, one column an error, one line a method; a point is one problem and program.

  Args:
    cells: of the study's JSON, each with its rows.
    tolerances: by name of the error; drawn as vertical lines.
    path: of the PNG.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  rows = [row for cell in cells for row in cell["rows"]]
  tiers = list(dict.fromkeys(row["tier"] for row in rows))
  methods = {t: list(dict.fromkeys(r["method"] for r in rows if r["tier"] == t))[::-1] for t in tiers}
  figure, axes = plt.subplots(
    len(tiers),
    len(TITLES),
    figsize=(19, 1.5 + 0.5 * sum(map(len, methods.values()))),
    sharex="col",
    sharey="row",
    squeeze=False,
    height_ratios=[len(methods[tier]) for tier in tiers],
    layout="constrained",
  )
  for line, tier in zip(axes, tiers, strict=True):
    for axis, name in zip(line, TITLES, strict=True):
      for offset, (kind, color) in zip((0.15, -0.15), COLORS.items(), strict=True):
        shown = [r for r in rows if (r["tier"], r["policy"]) == (tier, kind) and name in r["error"]]
        x = np.nan_to_num([r["error"][name] for r in shown], nan=1e3)
        y = [methods[tier].index(r["method"]) + offset for r in shown]
        axis.scatter(np.clip(x, SMALLEST, 1e3), y, s=8, alpha=0.5, color=color, label=kind)
      axis.axvline(tolerances[name], color="black", linewidth=0.8)
      axis.set_xscale("log")
      axis.set_yticks(range(len(methods[tier])), methods[tier], fontsize=8)
    line[0].set_ylabel(f"{tier} gradients" if tier == "expected" else "sampled groups and pairs")
  for axis, title in zip(axes[0], TITLES.values(), strict=True):
    axis.set_title(title, fontsize=10)
  axes[0, 0].legend(fontsize=8)
  figure.savefig(path, dpi=120)
  plt.close(figure)
