"""The notebooks: no stored outputs, a badge that opens the right file, and every cell runs."""

import ast
import importlib
import importlib.util
import inspect
import operator
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests import wheel

nbformat = pytest.importorskip("nbformat")
from nbclient import NotebookClient  # noqa: E402

FOLDER = pathlib.Path(__file__).parents[1] / "colabs"
SETUP = (FOLDER.parent / "setup.py").read_text(encoding="utf-8")
ADDRESS = re.search(r'^REPOSITORY = "([^"]+)"$', SETUP, re.MULTILINE)[1]
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def _read(name):
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def _code(name):
  return [cell for cell in _read(name).cells if cell.cell_type == "code"]


INSTALL = _code(NOTEBOOKS[0])[0].source  # alike in all


def test_there_are_notebooks():
  assert [name[:2] for name in NOTEBOOKS] == [f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_clean_and_installs_what_it_needs(name):
  notebook = _read(name)
  nbformat.validate(notebook)
  code = _code(name)
  assert all(not cell.outputs and cell.execution_count is None for cell in code)
  assert code[0].source == INSTALL and f'"qempo-jax[colab] @ git+{ADDRESS}"' in INSTALL
  assert f"/blob/main/colabs/{name}.ipynb" in notebook.cells[0].source


def test_a_failed_installation_stops_and_says_why(monkeypatch):
  monkeypatch.setitem(sys.modules, "qempo_jax", None)
  failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
  monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
  with pytest.raises(RuntimeError, match="pip could not install qempo-jax.*No matching distribution"):
    exec(INSTALL, {})


def _modules(tree):
  """The modules and objects that a notebook imports of ours, by the names it gives them."""
  found = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {
        x.asname: importlib.import_module(x.name) for x in node.names if x.asname and x.name.startswith("qempo_jax")
      }
    elif isinstance(node, ast.ImportFrom) and node.module.startswith(("experiments", "qempo_jax")):
      importlib.import_module(node.module)
      for x in node.names:
        if importlib.util.find_spec(node.module + "." + x.name):
          importlib.import_module(node.module + "." + x.name)
        found[x.asname or x.name] = getattr(sys.modules[node.module], x.name)
  return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_name_of_ours_that_a_notebook_uses_is_there(name):
  lines = "\n".join(cell.source for cell in _code(name)).split("\n")
  tree = ast.parse("\n".join(line for line in lines if line.strip()[:1] not in ("!", "%")))
  ours, used = _modules(tree), 0
  for node in ast.walk(tree):
    text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    root, _, rest = text.partition(".")
    if root in ours and re.fullmatch(r"[\w.]+", rest) and inspect.ismodule(ours[root]):
      assert operator.attrgetter(rest)(ours[root]) is not None, text
      used += 1
  assert used


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The wheel's package, and beside it the two folders that a notebook would take from a clone."""
  built, _ = wheel.build(tmp_path_factory.mktemp("sources"))
  folder = wheel.install(built, tmp_path_factory.mktemp("site"))
  for name in ("experiments", "configs"):
    shutil.copytree(FOLDER.parent / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  return folder


def test_every_notebook_checks_what_it_shows():
  assert [
    name for name in NOTEBOOKS if not any(re.search(r"^ *(assert |np.testing)", c.source, re.M) for c in _code(name))
  ] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs_from_the_wheel(name, installed, tmp_path, monkeypatch):
  monkeypatch.setenv("MPLBACKEND", "agg")
  monkeypatch.delenv("XLA_FLAGS", raising=False)  # the tests' eight devices would hold eight copies of a model
  monkeypatch.setenv("PJRT_NPROC", "1")  # Workers share the cores: more threads of a notebook would cost CPU time.
  monkeypatch.setenv("PYTHONPATH", str(installed))
  notebook = _read(name)
  where = f"assert qj.__file__.startswith({str(installed)!r}), qj.__file__"
  notebook.cells.append(nbformat.v4.new_code_cell(where))
  started = time.monotonic()
  NotebookClient(
    notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  print(f"{name}: {time.monotonic() - started:.0f} s")
  errors = [out for cell in notebook.cells for out in cell.get("outputs", ()) if out.output_type == "error"]
  assert not errors
