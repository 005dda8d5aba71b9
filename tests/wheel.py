"""The built wheel, and a folder with it installed."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("qempo_jax", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(*command, **options) -> str:
  """The standard output of a command that succeeds."""
  done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


def build(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """(the wheel, the sdist), built from a copy of the sources in `folder`, so that nothing is left behind in them."""
  for name in SOURCES:
    source = ROOT / name
    if source.is_dir():
      shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(source, folder / name)
  program = "from setuptools import build_meta as b; print(b.build_wheel('dist')); print(b.build_sdist('dist'))"
  names = run(sys.executable, "-c", program, cwd=folder).splitlines()[-1:]
  assert names[0].endswith(".tar.gz")
  return next((folder / "dist").glob("*.whl")), folder / "dist" / names[0]


def install(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """`folder`, with the wheel's package alone in it."""
  run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel))
  return folder
