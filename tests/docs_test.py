"""Every Python block of the README and of the documentation runs, and every example in a docstring.

A page's blocks share their names. A block of Python that is not marked as such would not run: none may hide.
"""

import doctest
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from qempo_jax.evaluation import alarms

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PACKAGE = ROOT / "qempo_jax"
EXAMPLES = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts)
  for path in sorted(PACKAGE.rglob("*.py"))
  if ">>> " in path.read_text(encoding="utf-8")
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


SLOW_PAGES = {"composing": pytest.mark.slow}


@pytest.mark.parametrize(
  "page", [pytest.param(page, id=page.stem, marks=SLOW_PAGES.get(page.stem, ())) for page in WITH_CODE]
)
def test_code_runs_as_printed(page):
  names = {}
  for block in BLOCK.findall(page.read_text(encoding="utf-8")):
    exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
  results = doctest.testmod(importlib.import_module(name))
  assert results.attempted and not results.failed


def test_examples_in_docstrings_are_found():
  assert {"qempo_jax.family", "qempo_jax.exact", "qempo_jax.losses.preference", "qempo_jax.losses.translate"} <= set(
    EXAMPLES
  )


def test_no_python_hides_in_an_unmarked_block():
  for page in PAGES:
    for label, block in FENCE.findall(page.read_text(encoding="utf-8")):
      hidden = label != "python" and re.search(r"^(import|from|def|class) \w+", block, re.MULTILINE)
      assert not hidden, f"{page.name}: {block[:80]}"


def test_pages_with_code_are_found():
  assert {"README", "composing", "idea", "choosing", "getting_started"} <= {page.stem for page in WITH_CODE}


def test_links_lead_somewhere():
  links = [(page, target) for page in PAGES for target in LINK.findall(page.read_text(encoding="utf-8"))]
  inside = [(page, target) for page, target in links if "://" not in target]
  assert inside and not [(page.name, target) for page, target in inside if not (page.parent / target).exists()]


def test_every_alarm_is_explained():
  page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
  assert [kind for kind in alarms.KINDS if f"| `{kind}`" not in page] == []


def test_every_page_is_in_the_menu():
  menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
  listed = re.findall(r": ([\w/]+\.md)$", menu, flags=re.MULTILINE)
  assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])
  assert yaml.safe_load(menu)["theme"]["name"] == "material"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_or_a_script_from_elsewhere(tmp_path):
  for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed; `make docs` installs it")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
  assert "<math " in home and "arithmatex" not in home and not re.search(r'<script[^>]*src="https?:', home)
