"""The planted faults of `tests.mutants` fit the present code; the faults themselves are tried by `tests.mutants.run`."""

import collections
import pathlib

from tests.mutants import mutants

ROOT = pathlib.Path(__file__).parents[1]


def test_every_text_to_replace_stands_once_in_its_file():
  found = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in mutants.MUTANTS}
  assert {name: count for name, count in found.items() if count != 1} == {}
  assert max(collections.Counter(mutant.name for mutant in mutants.MUTANTS).values()) == 1
