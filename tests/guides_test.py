"""The guides' commands: every one names a program and keys that are there; the slow test runs them at tiny size."""

import pathlib
import shlex

import pytest

from experiments import cli
from experiments.configured import ranges
from qempo_jax.errors import InputError
from tests import pages

DOCS = pages.ROOT / "docs"
PAGES = [DOCS / "own_data.md", DOCS / "getting_started.md", *sorted((DOCS / "guides").glob("*.md"))]
COMMANDS = {page.stem: pages.commands(page) for page in PAGES}


def test_the_guides_have_commands():
  assert {"own_data", "which_method", "moving", "recipes", "memory_and_speed"} <= {
    name for name, of in COMMANDS.items() if of
  }
  assert sum(map(len, COMMANDS.values())) > 25
  verb, arguments = COMMANDS["own_data"][2]
  assert verb == "train" and arguments.endswith("--config.constraints.quality.bound=0.5")


@pytest.mark.parametrize("page", [name for name, of in COMMANDS.items() if of])
def test_every_command_names_a_program_and_keys_in_range(page, monkeypatch):
  monkeypatch.chdir(pages.ROOT)
  for verb, arguments in COMMANDS[page]:
    assert (pages.ROOT / "experiments" / f"{verb}.py").is_file()
    given = shlex.split(arguments)
    config = next((a.removeprefix("--config=") for a in given if a.startswith("--config=")), "configs/base.py")
    overrides = [a for a in given if a.startswith("--config.")]
    try:
      ranges.check(cli.complete_config(pathlib.Path(config), overrides))
    except InputError as error:
      raise AssertionError(f"{page}: {verb} {arguments}") from error
