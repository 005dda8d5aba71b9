"""The wheel holds the package and nothing else, and, installed elsewhere with its own dependencies alone, works."""

import os
import pathlib
import re
import shutil
import sys
import tarfile
import zipfile

import pytest

from tests import wheel

pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools >= 77")
ROOT = pathlib.Path(__file__).parents[1]
# Files of tests that need the package and its dependencies alone, the last one its templates too: run against the
# installed one from a folder without its sources.
PLAIN = ("family_test.py", "losses/policy_gradient_test.py", "evaluation/frontier_test.py")
# Modules that the package works without; blocking them shows that extras are optional.
EXTRAS = ("ml_collections", "transformers", "tokenizers", "gguf", "matplotlib", "experiments", "configs")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  return wheel.build(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
  """A folder with the installed package alone."""
  return wheel.install(built[0], tmp_path_factory.mktemp("site"))


def test_the_wheel_holds_exactly_the_package(built):
  names = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
  kept = {".py", ".html", ".typed"}
  package = (path for path in (ROOT / "qempo_jax").rglob("*") if path.suffix in kept or path.name == "py.typed")
  assert names == {path.relative_to(ROOT).as_posix() for path in package if "__pycache__" not in path.parts}


def test_metadata_names_core_and_extras(built):
  archive = zipfile.ZipFile(built[0])
  name = next(name for name in archive.namelist() if name.endswith("METADATA"))
  lines = archive.read(name).decode().split("\n\n")[0].splitlines()
  plain = {line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line}
  assert {line.split()[1].split(">")[0] for line in plain} == {"chex", "flax", "jax", "numpy", "optax"}
  assert {"License-Expression: Apache-2.0", "License: Apache-2.0"} & set(lines) and "Requires-Python: >=3.11" in lines


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
  with tarfile.open(built[1]) as sdist:
    sdist.extractall(tmp_path, filter="data")
  (folder,) = tmp_path.iterdir()
  wheel.run(sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('dist')", cwd=folder)
  again = next((folder / "dist").glob("*.whl"))
  assert {name: _bytes(again, name) for name in _names(again)} == {
    name: _bytes(built[0], name) for name in _names(built[0])
  }


def _names(wheel):
  return [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith(("RECORD", "WHEEL"))]


def _bytes(wheel, name):
  return zipfile.ZipFile(wheel).read(name)


def _environment(installed):
  return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}


@pytest.mark.slow
def test_the_losses_need_no_extra(installed, tmp_path):
  program = f"""
import sys
for name in {EXTRAS}:
  sys.modules[name] = None  # importing it fails
import jax.numpy as jnp, qempo_jax as qj
assert qj.__file__.startswith({str(installed)!r}), qj.__file__
print(float(qj.losses.qempo_kl_loss(*jnp.array([-9.0, -5.0, -9.5, -5.5]), quality_multiplier=5.0, kl_multiplier=1.0)))
print(float(qj.exact.solve_rlhf(jnp.array([1.0, 0.0]), jnp.log(jnp.array([0.5, 0.5])), min_reward=0.9).expected_reward))
"""
  loss, reward = map(float, wheel.run(sys.executable, "-c", program, cwd=tmp_path, env=_environment(installed)).split())
  assert loss > 0 and abs(reward - 0.9) < 1e-3


def test_plain_tests_import_neither_experiments_nor_configs():
  assert [
    name
    for name in PLAIN
    if re.search(r"(?m)^(from|import) (experiments|configs)", (ROOT / "tests" / name).read_text())
  ] == []


@pytest.mark.slow
def test_tests_pass_against_the_installed_wheel(installed, tmp_path):
  shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
  for name in PLAIN:
    shutil.copy(ROOT / "tests" / name, tmp_path)
  (tmp_path / "where_test.py").write_text(
    f"import qempo_jax\ndef test_where():\n  assert qempo_jax.__file__.startswith({str(installed)!r})\n"
  )
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(tmp_path)]
  out = wheel.run(
    *command, "-o", "python_files=*_test.py", "--rootdir", str(tmp_path), cwd=tmp_path, env=_environment(installed)
  )
  assert " passed" in out and "failed" not in out
