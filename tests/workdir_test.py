"""A workdir belongs to one config, and a mistake changes nothing in it."""

import json
import os

import pytest
from ml_collections.config_dict import ConfigDict, placeholder

from experiments.workdir import open_workdir, write_atomically
from qempo_jax.errors import InputError


def make_config(**changes):
  config = ConfigDict(
    dict(seed=0, sizes=(1, 2), limit=float("nan"), policy=dict(rate=1e-3, layers=2), extra={})
  )
  config.dual = ConfigDict(dict(max_kl=placeholder(float)))
  config.update_from_flattened_dict(changes)
  return config


def test_a_new_workdir_holds_the_config(tmp_path):
  folder = open_workdir(tmp_path / "a" / "b", make_config())
  assert folder == tmp_path / "a" / "b"
  saved = json.loads((folder / "config.json").read_text())
  assert saved["policy"] == {"rate": 1e-3, "layers": 2} and saved["sizes"] == [1, 2]
  assert saved["dual"] == {"max_kl": None}
  assert os.listdir(folder) == ["config.json"]


def test_the_same_config_opens_it_again_and_keeps_its_files(tmp_path):
  folder = open_workdir(tmp_path, make_config())
  (folder / "metrics.jsonl").write_text("{}\n")
  before = (folder / "config.json").stat().st_mtime_ns
  assert open_workdir(str(tmp_path), make_config()) == folder
  assert (folder / "config.json").stat().st_mtime_ns == before
  assert (folder / "metrics.jsonl").read_text() == "{}\n"


def test_another_config_is_refused_with_the_first_differing_keys(tmp_path):
  open_workdir(tmp_path, make_config())
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
  assert (
    "holds the run of another config" in message
    and "--workdir" in message
    and "and 2 more" in message
  )
  assert sum(f"{key} is" in message for key in changes) == 3
  assert (tmp_path / "config.json").read_bytes() == before


def test_keys_that_only_one_side_has_are_differences(tmp_path):
  open_workdir(tmp_path, make_config())
  config = make_config()
  config.new = "x"
  del config["seed"]
  with pytest.raises(
    InputError, match='new is absent there and "x" here.*seed is 0 there and absent here'
  ):
    open_workdir(tmp_path, config)


def test_a_damaged_config_file_is_refused_and_kept(tmp_path):
  (tmp_path / "config.json").write_text('{"seed": ')
  with pytest.raises(InputError, match="is damaged.*--workdir"):
    open_workdir(tmp_path, make_config())
  assert (tmp_path / "config.json").read_text() == '{"seed": '


def test_an_unwritable_place_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  for place in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(InputError, match="Can't write the workdir.*choose another --workdir"):
      open_workdir(place, make_config())


def test_a_failed_write_leaves_the_old_contents(tmp_path, monkeypatch):
  path = tmp_path / "report.json"
  write_atomically(path, "old")

  def fail(*_):
    raise OSError("no space left")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="no space left"):
    write_atomically(path, "new")
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.json"]
