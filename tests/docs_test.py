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
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
WRITTEN = [
  path
  for path in sorted(ROOT.rglob("*.md"))
  if not {"runs", ".venv", "site", "node_modules"} & set(path.relative_to(ROOT).parts)
]
COLUMN = 96  # Characters of a line of code beside both menus at 1280 pixels


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


def anchors(page):
  """The names of a page's headings, as GitHub and MkDocs make them."""
  text = FENCE.sub("", page.read_text(encoding="utf-8"))
  titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_and_anchors_lead_somewhere():
  bad, seen = [], 0
  for page in WRITTEN:
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
      if "://" in target or target.startswith("mailto:"):
        continue
      to = (page.parent / target) if target else page
      seen += 1
      if not to.exists() or (anchor and to.suffix == ".md" and anchor not in anchors(to)):
        bad.append((page.name, target, anchor))
  assert seen > 150 and not bad


def test_code_fits_the_column():
  """A longer line wraps wherever a hyphen is, so that "--config" may lose its dashes."""
  wide = []
  for page in PAGES[1:]:
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
      if line.startswith("```"):
        fenced = not fenced
      elif (fenced or line.startswith("    ")) and len(line if fenced else line[4:]) > COLUMN:
        wide.append((page.name, number))
  assert not wide


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
