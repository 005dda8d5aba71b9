"""Every number in the tables of the README and of the results page is one of a committed result."""

import json
import pathlib

import pytest

from experiments.studies import countdown_claim_tables
from experiments.studies import results_table

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = sorted((ROOT / "docs" / "results").glob("open_list_*.json"))
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")}


def _rows(path):
  results = json.loads(path.read_text(encoding="utf-8"))
  tables = (results_table.comparisons, results_table.rows, results_table.exact_rows, results_table.exact_comparisons)
  return [row for table in tables for row in table(results)]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_results_page_has_every_row(path):
  for row in _rows(path):
    if "| base |" not in row:
      assert row in PAGES["docs/results.md"], f"docs/results.md lacks, or rounds otherwise: {row}"


@pytest.mark.parametrize("name", PAGES)
def test_no_row_is_without_a_result(name):
  """A row of figures with an interval must come from one of the files."""
  known = {row for path in RESULTS for row in _rows(path)} | set(
    countdown_claim_tables.summary(countdown_claim_tables.load())
  )
  measured = [line for line in PAGES[name].splitlines() if line.startswith("|") and "[0." in line]
  assert measured and not set(measured) - known


def test_the_picture_is_a_committed_result():
  for picture in ("docs/figures/countdown_claim.png", "docs/results/countdown_claim"):
    assert picture in PAGES["README.md"] and (ROOT / picture).exists()


def test_the_readme_is_short():
  assert len(PAGES["README.md"].splitlines()) < 150
