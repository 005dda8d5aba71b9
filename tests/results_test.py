"""The tables of RESULTS.md are what one command makes of the committed raw results."""

import functools
import re

import pytest

from experiments.studies import cells
from experiments.studies import results
from qempo_jax.errors import InputError
from qempo_jax.methods.resolve import table

PAGE = results.PAGE.read_text(encoding="utf-8")


@pytest.fixture(autouse=True, scope="module")
def each_table_is_made_once():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(results, "TABLES", {name: functools.cache(make) for name, make in results.TABLES.items()})
    yield


def test_every_table_is_that_of_its_raw_results():
  assert results.differing(PAGE) == []


def test_a_changed_number_is_noticed_and_made_right_again():
  broken, count = re.subn(r"\| QEMPO \| 6 \| 3\.438", "| QEMPO | 6 | 9.438", PAGE)
  assert count == 1 and results.differing(broken) == ["frontier_toy/hypervolume"]
  assert results.filled(broken) == PAGE


def test_a_mark_without_a_maker_is_named():
  with pytest.raises(InputError, match="nothing/here"):
    results.filled("<!-- table: nothing/here -->\n\n| a |\n")


def test_a_users_own_method_comes_last():
  assert cells.place("mine") > max(map(cells.place, table()))
