"""The repository's address is set once, in setup.py, and every other mention of it agrees."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = re.compile(r"github(?:usercontent)?(?:\.com)?/([\w.-]+/qempo[\w-]*)")
ADDRESS = re.search(r'^REPOSITORY = "https://github\.com/([^"]+)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
SUFFIXES = {".md", ".py", ".ipynb", ".yml", ".cff", ".toml"}


def _files():
  listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
  if listed.returncode:
    pytest.skip("not a git checkout")
  return [ROOT / name for name in listed.stdout.splitlines() if pathlib.Path(name).suffix in SUFFIXES]


def test_every_mention_agrees():
  found = {path: set(OURS.findall(path.read_text(encoding="utf-8"))) for path in _files() if path.is_file()}
  others = {path.relative_to(ROOT).as_posix(): names for path, names in found.items() if names - {ADDRESS}}
  assert not others, f"setup.py says {ADDRESS}"


@pytest.mark.parametrize("name", ["CITATION.cff", "mkdocs.yml", "docs/getting_started.md", "colabs/01_the_idea.ipynb"])
def test_it_is_named_where_readers_look(name):
  assert ADDRESS in OURS.findall((ROOT / name).read_text(encoding="utf-8"))
