"""Tables of experiments.studies.countdown_offline from docs/results/countdown_offline, once all methods are run.

`countdown_claim_tables.load(FOLDER)` reads the runs.

Figures are exact means over puzzles; intervals are 95 %, Student's over seeds, each seed with a log of its own. Two methods are
compared seed by seed, on the same log.

One rule chooses a method's learning rate and number of updates: on the validation puzzles, of those whose P(right) is within
`MATCH` of the method's largest, the one with the most distinct right answers.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.studies import cells
from experiments.studies.countdown_claim_tables import MATCH
from experiments.studies.countdown_claim_tables import SPLITS
from experiments.studies.countdown_claim_tables import Runs
from qempo_jax.evaluation.intervals import over_seeds

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "results" / "countdown_offline"
LEVELS = (0.55, 0.59, 0.62, 0.65, 0.68)  # of P(right)
FIGURES = {"right": "P(right)", "distinct": "distinct of 64"}
METHODS = {
  "dpo_beta0.1": "DPO, beta .1",
  "dpo_beta0.5": "DPO, beta .5",
  "dpo_beta0.5_even": "DPO, beta .5, pairs weighted evenly by answer",
  "sft": "likelihood of right samples as drawn",
  "sft_pairs": "the same + 2 x pair loss",
  "sft_even": "likelihood evenly by answer",
  "listwise": "listwise: evenly by answer + 2 x pair loss",
  "regression": "regression to QEMPO-C's target, R = .85",
}


class Choice(NamedTuple):
  """A method's point and step, and the figures there: [seeds] by split and figure, means over puzzles."""

  point: str
  step: int
  figures: dict[str, dict[str, np.ndarray]]


def at(runs: list[dict], place: int) -> dict[str, dict[str, np.ndarray]]:
  """The figures of a point's runs at one of the evaluated steps."""
  of = lambda split, name: np.array([np.mean(run["rows"][place][name][split]) for run in runs])
  return {split: {name: of(split, name) for name in FIGURES} for split in ("train", "validation", "heldout")}


def chosen(runs: Runs, method: str) -> Choice:
  """The rate and the step that the rule chooses."""
  own = {point: found for point, found in runs.items() if point.rsplit("_", 1)[0] == method}
  rate = _best({(point, place): at(found, place) for point, found in own.items() for place in _places(found)})[0]
  place = _best({place: at(own[rate], place) for place in _places(own[rate])})
  return Choice(rate, own[rate][0]["rows"][place]["step"], at(own[rate], place))


def _places(runs):
  return range(1, len(runs[0]["rows"]))


def _best(spots: dict):
  """The key of the spot with the most distinct right answers, of those of nearly the largest P(right)."""
  most = max(figures["validation"]["right"].mean() for figures in spots.values())
  close = {key: f["validation"] for key, f in spots.items() if f["validation"]["right"].mean() >= most - MATCH}
  return max(close, key=lambda key: close[key]["distinct"].mean())


def points(runs: Runs) -> list[str]:
  """A row a method at its chosen rate and step, the reference first."""
  header = [f"{figure}, {split}" for split in SPLITS.values() for figure in FIGURES.values()]
  lines = [f"| method | rate | updates | seeds | {' | '.join(header)} |", "|---" * (len(header) + 4) + "|"]
  first = at(next(iter(runs.values()))[:1], 0)
  rows = {"reference": Choice("_-", 0, first)} | {label: chosen(runs, method) for method, label in METHODS.items()}
  for label, choice in rows.items():
    shown = [cells.interval(over_seeds(choice.figures[split][name])) for split in SPLITS for name in FIGURES]
    seeds = len(choice.figures["train"]["right"]) if choice.step else "-"
    lines.append(f"| {label} | {choice.point.rsplit('_', 1)[1]} | {choice.step} | {seeds} | {' | '.join(shown)} |")
  return lines


def differences(runs: Runs) -> list[str]:
  """Listwise less every other method, and less the method's most diverse step of no less P(right), seed by seed."""
  header = [f"{figure}, {split}" for split in SPLITS.values() for figure in FIGURES.values()]
  lines = [
    f"| listwise less | {' | '.join(header)} | at no less P(right), held out: updates | P(right) | distinct of 64 |"
  ]
  lines.append("|---" * (len(header) + 4) + "|")
  ours = chosen(runs, "listwise").figures
  for method, label in METHODS.items():
    if method == "listwise":
      continue
    rival = chosen(runs, method)
    less = lambda other, split, name: cells.interval(over_seeds(ours[split][name] - other[split][name]))
    shown = [less(rival.figures, split, name) for split in SPLITS for name in FIGURES]
    own = runs[rival.point]
    spots = {own[0]["rows"][place]["step"]: at(own, place) for place in _places(own)}
    floor = ours["heldout"]["right"].mean() - MATCH
    spots = {step: f for step, f in spots.items() if f["heldout"]["right"].mean() >= floor}
    rest = ["none reaches it", "", ""]
    if spots:
      step = max(spots, key=lambda step, s=spots: s[step]["heldout"]["distinct"].mean())
      rest = [str(step), *(less(spots[step], "heldout", name) for name in FIGURES)]
    lines.append(f"| {label} | {' | '.join([*shown, *rest])} |")
  return lines


def frontier(runs: Runs) -> list[str]:
  """The most distinct right answers of 64 held out by level of P(right) held out, over all rates and updates of each method."""
  lines = [f"| P(right) at least | {' | '.join(METHODS.values())} |", "|---" * (len(METHODS) + 1) + "|"]
  spots = {method: [] for method in METHODS}
  for point, found in runs.items():
    spots[point.rsplit("_", 1)[0]] += [at(found, place)["heldout"] for place in _places(found)]
  for level in LEVELS:
    near = [[f["distinct"].mean() for f in of_method if f["right"].mean() >= level] for of_method in spots.values()]
    lines.append(f"| {level} | {' | '.join(f'{max(values):.2f}' if values else '-' for values in near)} |")
  return lines
