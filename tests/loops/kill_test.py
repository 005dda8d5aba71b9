"""Runs killed at random moments, also in the middle of saves, end bit by bit as the one that nobody killed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.loops import killed_runs
from tests.loops import kinds_of_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds_of_run.KINDS)
def test_twelve_kills_of_each_of_five_kinds_change_nothing(tmp_path, kind):
  command = [sys.executable, "-m", "tests.loops.killed_runs", str(tmp_path), "12", "40", kind]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  print(found)
  assert found["differences"] == [] and found["damaged"] == []
  assert found["saving"] + found["running"] == 12 and found["saving"] >= 2 and found["resumed"]


def test_the_comparison_sees_a_repeated_step_and_a_changed_bit(tmp_path):
  import numpy as np

  for name, steps, value in (("a", (1, 2), 1.0), ("b", (1, 1), 1.0), ("c", (1, 2), np.nextafter(1.0, 2))):
    (tmp_path / name).mkdir()
    np.savez(tmp_path / name / "final.npz", x=np.float64(value))
    rows = [json.dumps({"step": step, "seconds": len(name)}) + "\n" for step in steps]
    (tmp_path / name / "metrics.jsonl").write_text("".join(rows))
    (tmp_path / name / "turns.jsonl").write_text('[1, ["p"]]\n' * 2)
  a = tmp_path / "a"
  assert killed_runs.differences(a, a) == []
  assert killed_runs.differences(tmp_path / "b", a) == ["steps [1, 1]", "metrics of step 2"]
  assert killed_runs.differences(tmp_path / "c", a) == ["x"]
  assert killed_runs.turns(a) == [[1, ["p"]]]  # two lives did that step with the same result
  (a / "turns.jsonl").write_text('[1, ["p"]]\n[1, ["q"]]\n')
  assert killed_runs.differences(a, tmp_path / "b")[-2] == "prompts [[1, ['q']]]"
