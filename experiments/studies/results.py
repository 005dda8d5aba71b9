"""The tables and figures of RESULTS.md, made again from the committed raw JSON in docs/results.

  python -m experiments.studies.results            # writes tables and figures
  python -m experiments.studies.results --check    # writes nothing, names the tables that differ

Tables in RESULTS.md stand below their mark, `<!-- table: STUDY -->` or `<!-- table: STUDY/NAME -->`; TABLES says who makes them.
"""

import argparse
from collections.abc import Callable
import functools
import json
import pathlib
import re
import sys

from experiments.studies import countdown_claim_tables
from experiments.studies import countdown_offline_tables
from experiments.studies import countdown_tables
from experiments.studies import entropy_gradients
from experiments.studies import frontier_figure
from experiments.studies import loose_floor
from experiments.studies import pairs_tables
from qempo_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "experiments" / "RESULTS.md"
_MARK = re.compile(r"(<!-- table: (\S+) -->\n\n?)((?:\|.*\n|\n(?=\|))*)")

Lines = list[str]


@functools.cache
def raw(name: str) -> dict:
  """The JSON of a study."""
  return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _countdown(name: str) -> Callable[[], Lines]:
  return lambda: countdown_tables.tables(raw(name))


def _with_budget() -> Lines:
  """QEMPO-KL under a budget that binds, with the other study's methods."""
  beside = [run for run in raw("countdown_small") if run["method"] in ("base", "grpo", "ucpo")]
  return countdown_tables.tables(beside + raw("countdown_budget"))


def _offline() -> countdown_claim_tables.Runs:
  return countdown_claim_tables.load(countdown_offline_tables.FOLDER)


TABLES: dict[str, Callable[[], Lines]] = {
  "countdown": _countdown("countdown"),
  "countdown_budget": _with_budget,
  "countdown_claim/frontier": lambda: countdown_claim_tables.frontier(countdown_claim_tables.load()),
  "countdown_claim/matched": lambda: countdown_claim_tables.matched(countdown_claim_tables.load()),
  "countdown_claim/points": lambda: countdown_claim_tables.points(countdown_claim_tables.load()),
  "countdown_claim/summary": lambda: countdown_claim_tables.summary(countdown_claim_tables.load()),
  "countdown_claim/temperatures": lambda: countdown_claim_tables.temperatures(countdown_claim_tables.load()),
  "countdown_offline/differences": lambda: countdown_offline_tables.differences(_offline()),
  "countdown_offline/frontier": lambda: countdown_offline_tables.frontier(_offline()),
  "countdown_offline/points": lambda: countdown_offline_tables.points(_offline()),
  "countdown_small": _countdown("countdown_small"),
  "diverse_pairs": lambda: pairs_tables.tables(raw("diverse_pairs")),
  "entropy_gradients": lambda: entropy_gradients.table(raw("entropy_gradients")["rows"]),
  "frontier_toy/hypervolume": lambda: frontier_figure.hypervolumes(raw("frontier_toy")),
  "frontier_toy/matched": lambda: frontier_figure.matched(raw("frontier_toy")),
  "frontier_toy/points": lambda: frontier_figure.points(raw("frontier_toy"), frontier_figure.SHOWN),
  "loose_floor/loose": lambda: loose_floor.table(raw("loose_floor")["rows"], floor=0.5),
  "loose_floor/tight": lambda: loose_floor.table(raw("loose_floor")["rows"], floor=0.99),
  "loose_floor_countdown": _countdown("loose_floor_countdown"),
  "offline_countdown": _countdown("offline_countdown"),
  "offline_pairs": lambda: pairs_tables.tables(raw("offline_pairs")),
}
FIGURES: dict[str, Callable[[], bytes]] = {
  "countdown_claim.png": lambda: countdown_claim_tables.picture(countdown_claim_tables.load()),
  "countdown_small.png": lambda: countdown_tables.picture(raw("countdown_small")),
  "frontier_toy.png": lambda: frontier_figure.picture(raw("frontier_toy")),
  "offline_countdown.png": lambda: countdown_tables.picture(raw("offline_countdown")),
}


def filled(page: str) -> str:
  """The page with every marked table made anew.

  Raises:
    InputError: a mark names no table.
  """

  def fill(match):
    if match[2] not in TABLES:
      raise InputError(f"RESULTS.md marks a table {match[2]!r}, which is not one of {', '.join(TABLES)}.")
    return match[1] + "".join(f"{line}\n" for line in TABLES[match[2]]())

  return _MARK.sub(fill, page)


def differing(page: str) -> Lines:
  """Names of marked tables that differ from their JSON, and of tables that the page lacks."""
  found = {match[2]: match[3] for match in _MARK.finditer(page)}
  return [name for name in TABLES if found.get(name) != "".join(f"{line}\n" for line in TABLES[name]())]


def main() -> None:
  """Writes, or checks."""
  parser = argparse.ArgumentParser(description="Makes the tables and figures of RESULTS.md from docs/results.")
  parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table differs")
  if parser.parse_args().check:
    names = differing(PAGE.read_text(encoding="utf-8"))
    print("\n".join(f"differs: {name}" for name in names) or "all tables are those of the raw results")
    sys.exit(1 if names else 0)
  PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
  for name, draw in FIGURES.items():
    (ROOT / "docs" / "figures" / name).write_bytes(draw())


if __name__ == "__main__":
  main()
