"""Paths that no file can have, whole files, JSON files that hold something else, and what user code may raise: one line each."""

import os
import pathlib

import pytest

from configs import base
from experiments.run import workdir as workdirs
from qempo_jax import errors
from qempo_jax import paths
from qempo_jax.data import sources
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from qempo_jax.evaluation import judging
from qempo_jax.models import conversion
from qempo_jax.models import export
from qempo_jax.rewards import reward_model
from tests.loops import toy

BAD = ["x" * 300, "~nosuchuser/a", "a\0b", f"no/such/{'y' * 300}/a"]
READERS = [
  lambda path: sources.open_rows(f"jsonl:{path}"),
  lambda path: sources.open_rows(f"parquet:{path}"),
  lambda path: sources.open_rows(f"tfds_dir:{path}"),
  tokenization.load_tokenizer,
  conversion.load,
  reward_model.load,
  judging.read,
  lambda path: export.export_model(path, {}, toy.MODEL),
  lambda path: workdirs.check_workdir(path, base.get_config()),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_path_that_no_file_can_have_is_one_line(bad):
  for read in READERS:
    with pytest.raises(InputError, match="the path .* cannot be used .*: correct it") as caught:
      read(bad)
    assert len(str(caught.value)) < 300


def test_a_path_may_be_absent(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "a" / "b", tmp_path / "file" / "a", tmp_path / ("z" * 255)):
    assert paths.expand_path(str(path)) == path
  assert paths.expand_path("~") == pathlib.Path.home()


@pytest.mark.parametrize("text", [b"3", b"null", b"[1]", b'{"a"', b"", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_a_file_that_is_no_json_object_is_one_line(tmp_path, text):
  (tmp_path / "config.json").write_bytes(text)
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  for read in (
    lambda: paths.read_json(tmp_path / "config.json", "mend it"),
    lambda: workdirs.check_workdir(tmp_path, base.get_config()),
    lambda: workdirs.of_the_run(base.get_config(), tmp_path, ("export",)),
  ):
    with pytest.raises(InputError, match=r"config.json (cannot be read \(|is no JSON object)") as caught:
      read()
    assert "\n" not in str(caught.value)


class Mute(Exception):
  def __str__(self):
    raise ValueError


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (SystemExit(0), "SystemExit: 0"),
    (Mute(), "Mute"),
    (GeneratorExit(), "GeneratorExit"),
    (OSError("a\nb"), "OSError: a"),
  ],
)
def test_anything_that_user_code_raises_is_one_line_but_ctrl_c(error, said):
  with pytest.raises(InputError, match=f"^f raised {said}; mend it$"):
    with errors.user_code("f raised", "mend it"):
      raise error
  with pytest.raises(KeyboardInterrupt), errors.user_code("f raised", "mend it"):
    raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_contents(tmp_path, monkeypatch):
  path = tmp_path / "report.json"
  paths.write_atomically(path, "old")

  def fail(*_):
    raise OSError("no space left")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(InputError, match="report.json cannot be written .no space left.: free space there"):
    paths.write_atomically(path, "new")
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.json"]


def test_a_file_is_for_all_to_read_and_its_text_any(tmp_path):
  paths.write_atomically(tmp_path / "a.txt", "half \ud800 a character")
  paths.write_atomically(tmp_path / "b", b"\xff")
  assert (tmp_path / "a.txt").read_text() == "half ? a character" and (tmp_path / "b").read_bytes() == b"\xff"
  assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
