"""The guides' commands: every one names a program and keys that are there; the slow test runs them at tiny size."""

import pathlib
import shlex

import pytest

from experiments import cli
from experiments.configured import ranges
from qempo_jax.errors import InputError
from tests import pages

DOCS = pages.ROOT / "docs"
PAGES = [pages.ROOT / "README.md", *(pages.ROOT / "experiments").glob("*.md"), *sorted(DOCS.rglob("*.md"))]
COMMANDS = {page.relative_to(pages.ROOT).with_suffix("").as_posix(): pages.commands(page) for page in PAGES}


def test_the_guides_have_commands():
  there = {name for name, of in COMMANDS.items() if of}
  assert {f"docs/guides/{name}" for name in ("which_method", "moving", "recipes", "memory_and_speed")} < there
  assert sum(map(len, COMMANDS.values())) > 100 and {"experiments/RESULTS", "docs/pods"} < there
  verb, arguments = COMMANDS["docs/own_data"][2]
  assert verb == "train" and arguments.endswith("--config.constraints.quality.bound=0.5")


@pytest.mark.parametrize("page", [name for name, of in COMMANDS.items() if of])
def test_every_command_names_a_program_and_keys_in_range(page, monkeypatch):
  monkeypatch.chdir(pages.ROOT)
  for verb, arguments in COMMANDS[page]:
    module = pages.ROOT / "experiments" / verb.replace(".", "/")
    assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), (page, verb)
    given = shlex.split(arguments)
    config = next((a.removeprefix("--config=") for a in given if a.startswith("--config=")), "configs/base.py")
    overrides = [a for a in given if a.startswith("--config.")]
    if config in ("CONFIG", "..."):
      continue
    try:
      complete = cli.complete_config(pathlib.Path(config), overrides)
      if "method" in complete:  # others hold several methods
        ranges.check(complete)
    except InputError as error:
      raise AssertionError(f"{page}: {verb} {arguments}") from error
