"""The figure and the tables of a frontier from its JSON alone.

  python -m experiments.studies.frontier_figure docs/results/frontier_toy.json docs/figures/frontier_toy.png
"""

import json
import pathlib
import sys

from qempo_jax.evaluation import frontier
from qempo_jax.evaluation import frontier_page


def main(source: str, target: str) -> None:
  """Draws the figure; prints the tables of RESULTS.md as Markdown."""
  results = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))
  config, found = results["config"], frontier.points(results["runs"])
  pathlib.Path(target).write_bytes(frontier_page.draw(found, config, results["curves"]))
  label = lambda method: frontier_page.LABELS.get(method, method)
  print(frontier_page.headline(found, config), results["made_now"], "", sep="\n")
  print("| method | points | hypervolume |\n|---|---|---|")
  for method, (count, volume) in frontier_page.volumes(found, config).items():
    print(f"| {label(method)} | {count} | {_interval(volume)} |")
  print("\n| level | method | difference | p (Holm) | quality left |\n|---|---|---|---|---|")
  for m in frontier_page.matches(found, config):
    if m.diversity is not None:
      p_value = f"{m.diversity.adjusted_p_value:.3f}"
      print(f"| {m.level:.1f} | {label(m.method)} | {_interval(m.diversity.difference)} | {p_value} | {_interval(m.quality)} |")
  names = [name for name in ("reward", "entropy", "effective_answers", "pass@8", "pass@64", "distinct@8", "distinct@64")
           if name in found[0].figures]  # fmt: skip
  print(f"\n| point | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
  for point in found:
    cells = [_interval(point.interval(name, num_draws=config["num_draws"])) for name in names]
    print(f"| {label(point.method)}: {point.label} | {' | '.join(cells)} |")


def _interval(value) -> str:
  return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


if __name__ == "__main__":
  main(*sys.argv[1:])
