"""Tables and picture of experiments.studies.countdown_claim from docs/results/countdown_claim; `studies.results` writes them.

Figures are exact for each puzzle. Intervals are 95 %, from a bootstrap that redraws seeds and puzzles, each as a whole;
two operating points are compared on the same puzzles, with seeds redrawn for each.

One rule chooses learning rates: on the validation puzzles, seed 0, of a method's rates whose reward is within `MATCH` of the
better one's, the rate with more distinct right answers.
"""

from collections.abc import Iterator
import json
import pathlib
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from experiments.studies import cells
from qempo_jax.evaluation import plots
from qempo_jax.evaluation.intervals import Interval

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "results" / "countdown_claim"
MATCH, DRAWS = 0.02, 2000
RATES = ("1e-4", "3e-4")
SPLITS = {"train": "trained", "heldout": "held out"}
FIGURES = {"right": "P(right)", "distinct": "distinct of 64", "effective": "effective"}
# Points compared with the best point of each family, over rates, steps and sampling temperatures.
OURS, FAMILIES = ("qempo_c", "qempo_c_fixed"), {"GRPO": "grpo_", "UCPO": "ucpo_"}
ALL_FAMILIES = {"QEMPO-C": "qempo_c_", "GRPO": "grpo_", "UCPO": "ucpo_", "MARA": "mara_"}
LEVELS = (0.75, 0.8, 0.85, 0.9)
CURVES = {
  "grpo_beta0.04": ("GRPO, beta .04", "#999999"),
  "grpo_beta0.25": ("GRPO, beta .25", "#333333"),
  "ucpo_tau1": ("UCPO, tau 1", "#1f77b4"),
  "mara_4": ("MARA, lambda 4", "#2ca02c"),
  "qempo_c": ("QEMPO-C, floor .85", "#d62728"),
}

Runs = dict[str, list[dict]]


class Spot(NamedTuple):
  """One operating point: a step of a point's runs, sampled at a temperature; the figures are [seeds, puzzles] by name."""

  point: str
  step: int
  temperature: str
  figures: dict[str, np.ndarray]

  @property
  def label(self) -> str:
    """The point, its update, and its temperature where that is not 1."""
    return f"`{self.point}`, update {self.step}" + (f", T = {self.temperature}" if self.temperature != "1" else "")


def load(folder: pathlib.Path = FOLDER) -> Runs:
  """The runs by point, seeds in order; runs that have not come as far as the others are left out."""
  found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*-seed*.json"))]
  last = max(run["rows"][-1]["step"] for _, run in found)
  runs: Runs = {}
  for path, run in found:
    if run["rows"][-1]["step"] == last:
      runs.setdefault(path.stem.rsplit("-seed", 1)[0], []).append(run)
  return {point: sorted(of_point, key=lambda run: run["seed"]) for point, of_point in runs.items()}


def spots(point: str, runs: list[dict], split: str) -> Iterator[Spot]:
  """All operating points of one point's runs: every evaluated update, and other temperatures where they were evaluated."""
  for rows in zip(*(run["rows"] for run in runs), strict=True):
    hot = [
      temperature
      for temperature in rows[0].get("temperatures", ())
      if all(temperature in row["temperatures"] for row in rows)
    ]
    for temperature in ("1", *hot):
      at = rows if temperature == "1" else [row["temperatures"][temperature] for row in rows]
      figures = {name: np.array([row[name][split] for row in at]) for name in FIGURES if name in at[0]}
      yield Spot(point, rows[0]["step"], temperature, figures)


def end(point: str, runs: list[dict], split: str) -> Spot:
  """The trained policy at temperature 1."""
  return [spot for spot in spots(point, runs, split) if spot.temperature == "1"][-1]


def redrawn(values: np.ndarray, rng: np.random.Generator, puzzles: np.ndarray) -> np.ndarray:
  """Means [DRAWS] of [seeds, puzzles] over seeds drawn by `rng` and the given puzzles [DRAWS, puzzles]."""
  seeds = rng.integers(len(values), size=(len(puzzles), len(values)))
  return values[seeds[:, :, None], puzzles[:, None]].mean(axis=(1, 2))


def interval(one: np.ndarray, other: np.ndarray | None = None, ratio: bool = False) -> Interval:
  """Mean of one point's figure, or its difference from or ratio to another's, with its interval; no bounds with one seed."""
  rng = np.random.default_rng(0)
  puzzles = rng.integers(one.shape[1], size=(DRAWS, one.shape[1]))
  combine = (lambda a, b: a / b) if ratio else (lambda a, b: a - b)
  mean, draws = one.mean(), redrawn(one, rng, puzzles)
  if other is not None:
    mean, draws = combine(mean, other.mean()), combine(draws, redrawn(other, rng, puzzles))
  if len(one) < 2:
    return Interval(mean, np.nan, np.nan)
  return Interval(mean, *np.quantile(draws, (0.025, 0.975)))


def chosen_rates(runs: Runs) -> dict[str, str]:
  """By method the point of the learning rate that the rule chooses; a method with one rate keeps it."""
  found = {}
  for method in sorted({point.rsplit("_", 1)[0] for point in runs}):
    of_rate = {rate: runs[f"{method}_{rate}"][:1] for rate in RATES if f"{method}_{rate}" in runs}
    ends = {rate: end("", one, "validation").figures for rate, one in of_rate.items()}
    most = max(figures["right"].mean() for figures in ends.values())
    close = [rate for rate in ends if ends[rate]["right"].mean() >= most - MATCH]
    found[method] = f"{method}_{max(close, key=lambda rate, e=ends: e[rate]['distinct'].mean())}"
  return found


def points(runs: Runs) -> list[str]:
  """A row a point at its end, the reference first; the rates that the rule chose are bold."""
  header = [f"{figure}, {split}" for split in SPLITS.values() for figure in FIGURES.values()]
  lines = [f"| point | seeds | {' | '.join(header)} | multiplier |", "|---" * (len(header) + 3) + "|"]
  kept = set(chosen_rates(runs).values())
  first = next(iter(runs))
  rows = {"reference": [next(spots(first, runs[first][:1], split)) for split in SPLITS]}
  rows |= {point: [end(point, own, split) for split in SPLITS] for point, own in runs.items()}
  for point, ends in rows.items():
    own = runs.get(point, [])
    shown = [cells.interval(interval(spot.figures[name])) for spot in ends for name in FIGURES]
    multipliers = [run["rows"][-1]["measured"]["dual/quality/multiplier"] for run in own]
    learned = own and own[0]["point"]["floor"] is not None
    name = f"**{point}**" if point in kept else point
    seeds = len(own) or "-"
    lines.append(f"| {name} | {seeds} | {' | '.join(shown)} | {f'{np.mean(multipliers):.1f}' if learned else ''} |")
  return lines


def matched(runs: Runs) -> list[str]:
  """QEMPO-C at its end less the most diverse point of each family at no less reward, rates, steps and temperatures free."""
  lines = ["| split | point | family | its best point at no less reward - .02 | distinct, ratio | distinct, difference | P(right), difference |"]  # fmt: skip
  lines.append("|---" * 7 + "|")
  ours = [point for method, point in chosen_rates(runs).items() if method.startswith(OURS)]
  for split, label in SPLITS.items():
    for point in ours:
      own = end(point, runs[point], split)
      for family, prefix in FAMILIES.items():
        rivals = [s for name, r in runs.items() if name.startswith(prefix) for s in spots(name, r, split)]
        rivals = [s for s in rivals if s.figures["right"].mean() >= own.figures["right"].mean() - MATCH]
        if not rivals:
          lines.append(f"| {label} | `{point}` | {family} | none reaches that reward | | | |")
          continue
        best = max(rivals, key=lambda s: s.figures["distinct"].mean())
        pair = lambda name, own=own, best=best: (own.figures[name], best.figures[name])
        shown = [interval(*pair("distinct"), ratio=True), interval(*pair("distinct")), interval(*pair("right"))]
        lines.append(f"| {label} | `{point}` | {family} | {best.label} | {' | '.join(map(cells.interval, shown))} |")
  return lines


def frontier(runs: Runs) -> list[str]:
  """The most distinct right answers of each family at each level of reward, over rates, updates and temperatures."""
  ours, *others = ALL_FAMILIES
  lines = [
    f"| split | P(right) at least | {' | '.join(ALL_FAMILIES)} | {' | '.join(f'{ours} / {o}' for o in others)} |"
  ]
  lines.append("|---" * (len(ALL_FAMILIES) + len(others) + 2) + "|")
  for split, label in SPLITS.items():
    every = [spot for point, own in runs.items() for spot in spots(point, own, split)]
    for level in LEVELS:
      reached = [s for s in every if s.figures["right"].mean() >= level]
      best = {}
      for family, prefix in ALL_FAMILIES.items():
        own = [s for s in reached if s.point.startswith(prefix)]
        best[family] = max(own, key=lambda s: s.figures["distinct"].mean(), default=None)
      texts = [f"{s.figures['distinct'].mean():.2f} ({s.label})" if s else "not reached" for s in best.values()]
      distinct = {family: s.figures["distinct"] for family, s in best.items() if s}
      ratios = [
        cells.interval(interval(distinct[ours], distinct[other], ratio=True)) if {ours, other} <= set(distinct) else ""
        for other in others
      ]
      lines.append(f"| {label} | {level:g} | {' | '.join([*texts, *ratios])} |")
  return lines


def temperatures(runs: Runs) -> list[str]:
  """P(right) and distinct right answers of 64, held out, at each temperature of the samples."""
  shown = {method: point for method, point in chosen_rates(runs).items() if method in CURVES}
  last = {method: end(point, runs[point], "heldout").step for method, point in shown.items()}
  figures = {
    method: {s.temperature: s.figures for s in spots(point, runs[point], "heldout") if s.step == last[method]}
    for method, point in shown.items()
  }
  columns = sorted(set.intersection(*map(set, figures.values())), key=float)
  lines = [f"| method | {' | '.join(f'T = {t}' for t in columns)} |", "|---" * (len(columns) + 1) + "|"]
  for method in CURVES:
    if method in figures:
      pairs = [figures[method][t] for t in columns]
      texts = [f"{pair['right'].mean():.3f} / {pair['distinct'].mean():.2f}" for pair in pairs]
      lines.append(f"| {CURVES[method][0]} | {' | '.join(texts)} |")
  return lines


def summary(runs: Runs) -> list[str]:
  """A row a method of the picture, at the rate that the rule chose."""
  names = {"right": "P(right)", "distinct": "distinct right answers of 64"}
  header = [f"{name}, {split}" for split in ("held out", "trained") for name in names.values()]
  lines = [f"| method | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
  rates = chosen_rates(runs)
  first = runs[next(iter(runs))][:1]
  reference = [next(spots("", first, split)).figures[name] for split in ("heldout", "train") for name in names]
  lines.append(f"| reference | {' | '.join(cells.interval(interval(figure)) for figure in reference)} |")
  for method, (text, _) in CURVES.items():
    if method in rates:
      own = [end(rates[method], runs[rates[method]], split).figures[n] for split in ("heldout", "train") for n in names]
      lines.append(f"| {text} | {' | '.join(cells.interval(interval(figure)) for figure in own)} |")
  return lines


def picture(runs: Runs) -> bytes:
  """A PNG of distinct right answers and of P(right) over training steps, held out and trained; bands are 95 % over seeds."""
  canvas = FigureCanvasAgg(Figure(figsize=(8.4, 5.6), dpi=150, layout="constrained"))
  axes, rates = canvas.figure.subplots(2, 2, sharex=True), chosen_rates(runs)
  for column, (split, title) in enumerate((("heldout", "held-out puzzles"), ("train", "trained puzzles"))):
    for row, (name, label) in enumerate((("distinct", "distinct right answers of 64"), ("right", "P(right)"))):
      axis = axes[row][column]
      for method, (text, colour) in CURVES.items():
        if method not in rates:
          continue
        own = [s for s in spots(rates[method], runs[rates[method]], split) if s.temperature == "1"]
        steps, values = [s.step for s in own], np.array([s.figures[name].mean(axis=1) for s in own])
        axis.plot(steps, values.mean(axis=1), color=colour, linewidth=1.6, label=text)
        if values.shape[1] > 1:
          error = 1.96 * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
          axis.fill_between(
            steps, values.mean(axis=1) - error, values.mean(axis=1) + error, color=colour, alpha=0.2, linewidth=0
          )
      axis.spines[["top", "right"]].set_visible(False)
      axis.set_ylabel(label)
      if row == 0:
        axis.set_title(title, loc="left", fontsize=10)
      else:
        axis.set_xlabel("updates")
        axis.axhline(0.85, color="#d62728", linewidth=0.8, linestyle=":")
  axes[1][0].legend(fontsize=8, frameon=False, loc="lower right")
  return plots.png(canvas)
