"""The benchmark's half of the protocol: worker processes, and steps of two of them in turn."""

from collections.abc import Mapping
import json
import os
import pathlib
import subprocess
import threading

from qempo_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[3]
MODULES = "experiments.benchmarks.bench.sides"
PATIENCE = 1800.0  # timeout in seconds, to get ready and for a step


class Worker:
  """One process of one side."""

  def __init__(
    self, name: str, python: str, module: str, spec: dict, log: pathlib.Path, environment: Mapping[str, str]
  ):
    """Starts the process, and waits until it is ready.

    Args:
      name: name of the side, for messages.
      python: interpreter of its environment.
      module: module of `sides` that it runs.
      spec: its settings.
      log: file for its standard error.
      environment: additional environment variables.
    """
    self.name, self._log = name, log
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", f"{MODULES}.{module}", json.dumps(spec)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    with open(log, "w", encoding="utf-8") as errors:
      self._process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=variables, cwd=ROOT, text=True
      )
    self.ready = self._receive()

  def step(self) -> dict:
    """Runs one step and returns its figures: seconds, peak_bytes and those of the side."""
    self._process.stdin.write("step\n")
    self._process.stdin.flush()
    return self._receive()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _receive(self) -> dict:
    limit = threading.Timer(PATIENCE, self._process.kill)
    limit.start()
    line = next((line for line in self._process.stdout if line.startswith('{"')), None)
    limit.cancel()
    if line is None:
      self._process.kill()
      lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
      last = next((text for text in reversed(lines) if text.strip()), "nothing").strip()
      raise InputError(f"the side {self.name} of the benchmark stopped with {last!r}; see {self._log}")
    return json.loads(line)


def alternate(workers: list[Worker], *, warm_ups: int, rounds: int) -> dict[str, dict]:
  """Steps the workers in turn, A B A B: `warm_ups` steps, then `rounds` measured steps.

  Returns:
    By name: {"ready": figures, "warm_up": [figures], "steps": [figures]}.
  """
  found = {worker.name: {"ready": worker.ready, "warm_up": [], "steps": []} for worker in workers}
  for turn in range(warm_ups + rounds):
    for worker in workers:
      found[worker.name]["warm_up" if turn < warm_ups else "steps"].append(worker.step())
  return found
