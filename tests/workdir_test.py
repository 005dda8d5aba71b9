"""A workdir belongs to one config, and a mistake changes nothing in it."""

import functools
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from ml_collections.config_dict import ConfigDict
from ml_collections.config_dict import placeholder
import pytest

from configs import base
from experiments.run.workdir import check_workdir
from experiments.run.workdir import open_workdir
from qempo_jax.errors import InputError


def make_config(**changes):
  config = ConfigDict(dict(seed=0, sizes=(1, 2), limit=float("nan"), policy=dict(rate=1e-3, layers=2), extra={}))
  config.dual = ConfigDict(dict(max_kl=placeholder(float)))
  config.update_from_flattened_dict(changes)
  return config


def begun(folder, config):
  """The folder of a run that has left something."""
  folder = open_workdir(folder, config)
  (folder / "metrics.jsonl").write_text("{}\n")
  return folder


def test_a_new_workdir_holds_the_config(tmp_path):
  folder = open_workdir(tmp_path / "a" / "b", make_config())
  assert folder == tmp_path / "a" / "b"
  saved = json.loads((folder / "config.json").read_text())
  assert saved["policy"] == {"rate": 1e-3, "layers": 2} and saved["sizes"] == [1, 2]
  assert saved["dual"] == {"max_kl": None}
  assert sorted(os.listdir(folder)) == [".lock", "config.json"]


def test_a_link_that_leads_nowhere_is_something_a_run_left(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(InputError, match="holds the run of another config"):
    open_workdir(tmp_path, make_config())


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
  (tmp_path / "precious").write_text("precious")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
  with pytest.raises(InputError, match=".lock is a symbolic link"):
    open_workdir(tmp_path / "run", make_config())
  assert (tmp_path / "precious").read_text() == "precious"


def test_the_same_config_opens_it_again_and_keeps_its_files(tmp_path):
  folder = open_workdir(tmp_path, make_config())
  (folder / "metrics.jsonl").write_text("{}\n")
  before = (folder / "config.json").stat().st_mtime_ns
  assert open_workdir(str(tmp_path), make_config()) == folder
  assert (folder / "config.json").stat().st_mtime_ns == before
  assert (folder / "metrics.jsonl").read_text() == "{}\n"


def test_a_run_that_died_before_its_first_step_locks_nothing(tmp_path):
  open_workdir(tmp_path, make_config())
  open_workdir(tmp_path, make_config(seed=1))
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_another_config_is_refused_with_the_first_differing_keys(tmp_path):
  begun(tmp_path, make_config())
  before = (tmp_path / "config.json").read_bytes()
  changes = {
    "seed": 1,
    "policy.rate": 1e-4,
    "policy.layers": 3,
    "dual.max_kl": 2.0,
    "sizes": (1, 3),
  }
  with pytest.raises(InputError) as caught:
    open_workdir(tmp_path, make_config(**changes))
  message = str(caught.value)
  assert "holds the run of another config" in message and "--workdir" in message and "and 2 more" in message
  assert sum(f"{key} is" in message for key in changes) == 3
  assert (tmp_path / "config.json").read_bytes() == before


def test_keys_that_only_one_side_has_are_differences(tmp_path):
  begun(tmp_path, make_config())
  config = make_config()
  config.new = "x"
  del config["seed"]
  with pytest.raises(InputError, match='new is absent there and "x" here.*seed is 0 there and absent here'):
    open_workdir(tmp_path, config)


@pytest.mark.parametrize("method", [None, "qempo"])
def test_a_key_that_was_declared_since_has_its_default_there(tmp_path, method):
  """Of one run's config, or of one of several under its method's name."""
  nested = lambda config: ConfigDict({method: config}) if method else config
  older = base.get_config()
  del older.sampling["temperature"], older.lora["rank"]
  begun(tmp_path, nested(older))
  before = (tmp_path / "config.json").read_bytes()
  newer = base.get_config()
  open_workdir(tmp_path, nested(newer))
  assert (tmp_path / "config.json").read_bytes() == before
  newer.sampling.temperature = 0.5
  with pytest.raises(InputError, match=r"sampling.temperature is 1.0 there and 0.5 here\)"):
    open_workdir(tmp_path, nested(newer))
  del newer.sampling["temperature"], newer.steps
  with pytest.raises(InputError, match=r"steps is 40 there and absent here\)"):
    open_workdir(tmp_path, nested(newer))


def test_a_damaged_config_file_is_refused_and_kept(tmp_path):
  begun(tmp_path, make_config())
  (tmp_path / "config.json").write_text('{"seed": ')
  with pytest.raises(InputError, match="config.json cannot be read .*--workdir"):
    open_workdir(tmp_path, make_config())
  assert (tmp_path / "config.json").read_text() == '{"seed": '


def test_an_unwritable_place_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  for place in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(InputError, match="Can't write the workdir.*choose another --workdir"):
      open_workdir(place, make_config())


def test_where_a_run_computes_may_change_but_not_what(tmp_path):
  config = make_config()
  config.compute = ConfigDict(dict(mesh=(1, 8, 1), dtype="float32"))
  begun(tmp_path, config)
  config.compute.mesh = (1, 4, 1)
  open_workdir(tmp_path, config)
  config.compute.dtype = "bfloat16"
  with pytest.raises(InputError, match=r'\(compute.dtype is "float32" there and "bfloat16" here\)'):
    open_workdir(tmp_path, config)


@pytest.mark.parametrize(
  "key", ["optimizer.learning_rate", "duals.cap", "sampling.temperature", "compute.bucket", "steps"]
)
def test_what_a_run_computes_is_its_own(tmp_path, key):
  config = base.get_config()
  begun(tmp_path, config)
  value = functools.reduce(lambda group, name: group[name], key.split("."), config)
  config.update_from_flattened_dict({key: value + 1})
  with pytest.raises(InputError, match=f"{key} is {value} there and"):
    open_workdir(tmp_path, config)


def test_a_check_says_the_same_and_writes_nothing(tmp_path):
  check_workdir(tmp_path / "new" / "run", make_config())
  assert not (tmp_path / "new").exists()
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="Can't write the workdir .*file is in the way"):
    check_workdir(tmp_path / "file" / "run", make_config())
  begun(tmp_path / "run", make_config())
  check_workdir(tmp_path / "run", make_config())
  with pytest.raises(InputError, match="another config .seed is 0 there and 1 here"):
    check_workdir(tmp_path / "run", make_config(seed=1))


def test_a_bucket_is_no_workdir(tmp_path):
  for check in (check_workdir, open_workdir):
    with pytest.raises(InputError, match="checkpoint.folder"):
      check(Path("gs://bucket/run"), make_config())


HOLDER = """
import os, sys, time
from tests.workdir_test import make_config
from configs import base
from experiments.run.workdir import open_workdir
open_workdir(sys.argv[1], make_config())
if child := os.fork():
  print(os.getpid(), child, flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives_and_no_longer(tmp_path):
  command = [sys.executable, "-c", HOLDER, str(tmp_path)]
  with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as holder:
    owner, child = map(int, holder.stdout.readline().split())
    try:
      for refused in (open_workdir, check_workdir):
        with pytest.raises(InputError, match=f"in use by process {owner} on .*another --workdir"):
          refused(tmp_path, make_config())
      open_workdir(tmp_path, make_config(), lock=False)  # to read from it
    finally:
      os.kill(owner, signal.SIGKILL)
      holder.wait()
    try:
      open_workdir(tmp_path, make_config())  # the dead run's child lives on, and holds nothing
    finally:
      os.kill(child, signal.SIGKILL)
