"""Every number in the README's tables is one of a committed result."""

import json
import pathlib

import pytest

from experiments.studies import results_table

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("open_list_*.json")), ids=lambda p: p.stem)
def test_tables_are_the_results(path):
  results = json.loads(path.read_text(encoding="utf-8"))
  for row in results_table.comparisons(results) + results_table.rows(results):
    if "| base |" not in row:
      assert row in README, f"README lacks, or rounds otherwise: {row}"


def test_no_row_is_without_a_result():
  """A row of figures with an interval must come from one of the files."""
  known = set()
  for path in (ROOT / "docs" / "results").glob("open_list_*.json"):
    results = json.loads(path.read_text(encoding="utf-8"))
    known |= set(results_table.rows(results) + results_table.comparisons(results))
  measured = [line for line in README.splitlines() if line.startswith("|") and "[0." in line]
  assert measured and not set(measured) - known
