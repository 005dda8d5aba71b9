"""The figure and the tables of a frontier, from its JSON.

  python -m experiments.studies.frontier_figure docs/results/frontier_toy.json FIGURE.png

Tables are Markdown; `experiments.studies.results` puts them into RESULTS.md.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import sys

from experiments.studies import cells
from qempo_jax.evaluation import frontier
from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation import pages

_COLUMNS = ("reward", "entropy", "effective_answers", "pass@8", "distinct@64")
# Method and label of the points that RESULTS.md shows, out of the toy's 65.
SHOWN = (
  ("base", "sampling.temperature 1"),
  ("grpo", "quality.initial 8"),
  ("grpo_bonus", "quality.initial 16, objective.token_entropy_weight 0.3"),
  ("spl", "quality.initial 10, kl.initial 0"),
  ("spl", "quality.initial 5, kl.initial 0"),
  ("mara", "quality.initial 8"),
  ("ucpo", "quality.initial 16, objective.transform_strength 1"),
  ("setpo", "quality.initial 16, objective.transform_strength 1"),
  ("qempo_kl", "objective.min_reward 0.9, objective.max_kl 2.82"),
  ("qempo", "objective.min_reward 0.8"),
  ("qempo", "objective.min_reward 0.9"),
)


def main(source: str, target: str) -> None:
  """Draws the figure and prints all tables."""
  results = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))
  pathlib.Path(target).write_bytes(picture(results))
  print(frontier_page.headline(frontier.points(results["runs"]), results["config"]), results["made_now"], "", sep="\n")
  for table in (hypervolumes(results), matched(results), points(results)):
    print("\n".join(table), end="\n\n")


def picture(results: Mapping) -> bytes:
  """Draws the frontier; PNG bytes."""
  return frontier_page.draw(frontier.points(results["runs"]), results["config"], results["curves"])


def hypervolumes(results: Mapping) -> list[str]:
  """One row per method."""
  volumes = frontier_page.volumes(frontier.points(results["runs"]), results["config"])
  rows = [
    f"| {pages.label(method)} | {count} | {cells.interval(volume, 3)} |" for method, (count, volume) in volumes.items()
  ]
  return ["| method | points | hypervolume |", "|---|---|---|", *rows]


def matched(results: Mapping) -> list[str]:
  """One row per level of quality and method with a point there."""
  rows = []
  for m in frontier_page.matches(frontier.points(results["runs"]), results["config"]):
    if m.diversity is not None:
      difference, left = (cells.interval(value, 3) for value in (m.diversity.difference, m.quality))
      figures = f"{difference} | {m.diversity.adjusted_p_value:.3f} | {left}"
      rows.append(f"| {m.level:.1f} | {pages.label(m.method)} | {figures} |")
  return ["| level | method | difference | p (Holm) | quality left |", "|---|---|---|---|---|", *rows]


def points(results: Mapping, shown: Sequence[tuple[str, str]] | None = None) -> list[str]:
  """One row per operating point, of all points or of those in `shown`."""
  all_points = frontier.points(results["runs"])
  names = [name for name in _COLUMNS if name in all_points[0].figures]
  rows = []
  for point in all_points:
    if shown is None or (point.method, point.label) in shown:
      figures = [cells.interval(point.interval(name, num_draws=results["config"]["num_draws"]), 3) for name in names]
      rows.append(f"| {pages.label(point.method)}: {point.label} | {' | '.join(figures)} |")
  return [f"| point | {' | '.join(names)} |", f"|---{'|---' * len(names)}|", *rows]


if __name__ == "__main__":
  main(*sys.argv[1:])
