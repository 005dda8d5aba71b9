"""Other people's loops hold the constraints: each example ends at the exact optimum of one tiny problem.

`make test-interop` runs this file with every package installed; elsewhere what is absent skips.
"""

import importlib
import pathlib
import re

import numpy as np
import pytest

from experiments.interop import minimal
from experiments.interop import words

LOOPS = {"nnx_loop": "flax", "equinox_loop": "equinox"}
TUNIX = ("tunix_pairs", "tunix_online")
FOLDER = pathlib.Path(words.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "minimal"))


def test_the_problem_is_what_its_docstring_says():
  best = words.optimum()
  good = words.reward(words.WORDS)
  assert good.sum() == 36 and len(good) == 64
  np.testing.assert_allclose(best.entropy, 3.883, atol=1e-3)
  np.testing.assert_allclose(best.quality_multiplier, np.log(0.9 * 28 / (0.1 * 36)), rtol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("nnx_loop", marks=pytest.mark.slow), "equinox_loop"])
def test_an_example_raises_its_multiplier_while_the_floor_is_missed(name, monkeypatch):
  pytest.importorskip(LOOPS[name])
  loop = importlib.import_module(f"experiments.interop.{name}")
  monkeypatch.setattr(loop, "STEPS", 5)
  history = loop.main()
  multipliers = [row["multiplier"] for row in history]
  assert len(history) == 5 and all(row["reward"] < words.FLOOR and 3 < row["entropy"] < 6 for row in history)
  assert multipliers[0] == 1 < min(multipliers[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_an_example_ends_at_the_exact_optimum(name):
  pytest.importorskip(LOOPS[name])
  history = importlib.import_module(f"experiments.interop.{name}").main()
  tail = {key: np.mean([row[key] for row in history[-300:]]) for key in history[-1]}
  best = words.optimum()
  assert abs(tail["reward"] - words.FLOOR) < 0.01
  assert abs(tail["entropy"] / float(best.entropy) - 1) < 0.01
  assert abs(tail["multiplier"] / float(best.quality_multiplier) - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNIX)
def test_tunix_trains_to_both_constraints(name):
  pytest.importorskip("tunix", reason="google-tunix is not installed here: `make test-interop`")
  history, exact = importlib.import_module(f"experiments.interop.{name}").main()
  tail = {key: np.mean([row[key] for row in history[-200:]]) for key in history[-1]}
  assert abs(tail["dual/quality/value"] - words.FLOOR) < 0.01
  assert abs(tail["dual/kl/value"] - float(exact.kl)) < 0.01
  assert abs(tail["dual/quality/multiplier"] / float(exact.quality_multiplier) - 1) < 0.05
  assert abs(tail["dual/kl/multiplier"] / float(exact.kl_multiplier) - 1) < 0.1


def test_the_minimal_program_ends_at_both_exact_optima():
  table = minimal.main()
  assert list(table) == ["QEMPO", "QEMPO-C"]
  for name, rows in table.items():
    trained, exact = rows["trained"], rows["exact"]
    np.testing.assert_allclose(exact["E[r]"], minimal.FLOOR.bound, atol=1e-4)
    assert abs(trained["E[r]"] - minimal.FLOOR.bound) < 0.02, name
    assert abs(trained["entropy"] - exact["entropy"]) < 0.05, name
    assert abs(trained["answers"] - exact["answers"]) < 0.2, name
    assert abs(trained["lambda"] - exact["lambda"]) < 0.2, name


def test_the_minimal_program_needs_the_library_alone():
  source = pathlib.Path(minimal.__file__).read_text(encoding="utf-8")
  assert set(re.findall(r"^ *(?:import|from) (\w+)", source, re.MULTILINE)) == {"jax", "numpy", "optax", "qempo_jax"}
  assert len(source.splitlines()) <= 150


def test_every_example_is_short():
  lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
  assert {*LOOPS, *TUNIX} < set(lines) and max(lines[name] for name in (*LOOPS, *TUNIX)) < 80, lines
  assert max(lines.values()) < 100, lines
