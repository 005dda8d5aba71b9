"""What a dry run accepts, a run accepts; everything else is one line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_overrides_are_one_line_or_pass_as_dry_run_and_as_run(tmp_path):
  command = [sys.executable, "-m", "tests.overrides_tried", str(tmp_path / "tried"), "60", "40"]
  env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  print(found)
  assert found["wrong"] == []
  assert min(found["counts"][name][how] for name in ("random", "chosen") for how in ("refused", "accepted")) > 5
