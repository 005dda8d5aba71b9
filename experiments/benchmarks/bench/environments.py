"""Virtual environments of the peers, made once; ours is the running interpreter."""

import pathlib
import subprocess
import sys

from qempo_jax.errors import InputError

# Installed in order, so that the package index may choose torch's CPU build first.
PEERS = {
  "trl": ("torch==2.13.0", "trl==1.16.0", "transformers==5.24.0"),
  "tunix": ("google-tunix==0.1.7",),
}


def python_of(name: str, folder: pathlib.Path) -> str:
  """Returns an environment's interpreter; makes the environment if absent, which takes minutes, and gigabytes for torch."""
  if name == "ours":
    return sys.executable
  path = folder / name
  python, stamp = path / "bin" / "python", path / ".installed"
  if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(PEERS[name]):
    print(f"Installing {', '.join(PEERS[name])} into {path} ...", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(path)])
    for requirement in PEERS[name]:
      _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement])
    stamp.write_text("\n".join(PEERS[name]), encoding="utf-8")
  return str(python)


def _run(command: list[str]) -> None:
  result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
  if result.returncode:
    lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or result.stderr.splitlines()
    raise InputError(
      f"{' '.join(command[:6])} failed ({(lines or ['no message'])[-1]}); leave the case out with --only"
    )
