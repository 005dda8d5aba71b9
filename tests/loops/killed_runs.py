"""Tiny runs of every kind that are killed at random moments, often in the middle of a save, until they are through.

  python -m tests.loops.killed_runs FOLDER KILLS STEPS [KIND ...]

KILLS are shared by the kinds of `kinds_of_run`, all where none is named. Every life of a run is a fork of this process,
which has imported everything and never asked JAX for devices. It prints one JSON object: the number of lives killed
during and outside a save, the number of runs, and every difference from the run that nobody killed. Each life also notes
the prompts of each step in a file that no life truncates, so that a step done by two lives can be compared.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import jax
import numpy as np

from tests.loops import toy
from tests.metrics_file import timeless

scored: list[list[str]] = []  # names of the prompts of every step that was sampled and not shown yet


def reward(prompts, completions, name, **columns):
  """The toy's, remembering whose turn it was."""
  scored.append(list(dict.fromkeys(name)))
  return toy.reward(prompts, completions)


def config(folder: pathlib.Path, steps: int):
  """The toy's, with replay, every constraint, and a checkpoint after every second step."""
  config = toy.small(toy.config(folder))
  path = folder / "prompts.jsonl"
  rows = path.read_text(encoding="utf-8").splitlines()
  named = (json.dumps(json.loads(row) | {"name": f"prompt {place}"}) + "\n" for place, row in enumerate(rows))
  path.write_text("".join(named), encoding="utf-8")
  config.reward.function = "tests.loops.killed_runs.reward"
  config.steps = steps
  config.constraints.quality.bound, config.constraints.kl.bound = 0.6, 0.3
  config.replay.size, config.replay.min_reward = 2, 0.3
  config.optimizer.learning_rate = 1e-3
  config.checkpoint.every, config.checkpoint.keep = 2, 2
  return config


class Notes:
  """A display that appends notes, and whose prompts each step scored, to files."""

  def __init__(self, folder, early):
    self._folder, self._early = folder, early

  def step(self, step, metrics):
    """Keeps the names of the step's prompts, where no others are scored: samples drawn early, or a frontier's."""
    if scored and not self._early:
      self._append("turns.jsonl", json.dumps([step, scored.pop(0)]))

  def note(self, line):
    """Keeps a line."""
    self._append("notes.txt", line)

  def _append(self, name, line):
    with open(self._folder / name, "a", encoding="utf-8") as file:
      file.write(line + "\n")


def live(kind: str, folder: pathlib.Path, steps: int) -> None:
  """One life of a run; ends with final.npz."""
  from tests.loops import kinds_of_run

  folder.mkdir(exist_ok=True)
  # The prompts' file is the same for all, so that the configs are.
  kinds_of_run.KINDS[kind](config(folder.parent, steps), folder, Notes(folder, kind in ("stale", "frontier")))


def fork(function, *args) -> int:
  """Runs a function in a child; returns its process id."""
  sys.stdout.flush()
  if child := os.fork():
    return child
  status = 1
  try:
    function(*args)
    status = 0
  except SystemExit as stopped:
    status = stopped.code
  except BaseException:  # reported by the parent, as the status
    import traceback

    traceback.print_exc()
  finally:
    os._exit(status)


def writing(folder: pathlib.Path) -> bool:
  """True while a checkpoint is being written."""
  return any("tmp" in name for place in ("", *_names(folder / "runs")) for name in _names(_run(folder, place)))


def _run(folder: pathlib.Path, place: str) -> pathlib.Path:
  """The checkpoints of a run, or of one run of a frontier."""
  return (folder / "runs" / place if place else folder) / "checkpoints"


def _names(folder):
  try:
    return os.listdir(folder)
  except FileNotFoundError:
    return []


def kill_once(child: int, folder: pathlib.Path, rng: random.Random, *, late: bool) -> str:
  """Kills a life: at a random moment from its start to its fifth step, or in a save; "" where it was through before.

  A late kill comes after the fifth step, when the next life has a checkpoint to resume from.
  """
  in_save, target, saves, seen = rng.random() < 0.5 and not late, rng.randint(1, 3), 0, False
  before, more, until = _rows(folder), 5 if late else rng.randint(0, 5), None
  while True:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      assert status == 0, f"a life ended with status {status}"
      return ""
    now = writing(folder)
    saves, seen = saves + (now and not seen), now
    if until is None and (not more or _rows(folder) >= before + more):
      until = time.monotonic() + rng.uniform(0, 0.3 if more else 3)
    if (in_save and now and saves >= target) or (not in_save and until and time.monotonic() > until):
      if in_save:
        time.sleep(rng.uniform(0, 0.03))
      os.kill(child, signal.SIGSTOP)
      _, status = os.waitpid(child, os.WUNTRACED)
      if not os.WIFSTOPPED(status):
        assert status == 0, f"a life ended with status {status}"
        return ""
      during = writing(folder)
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)
      return "saving" if during else "running"
    time.sleep(0.0005)


def _rows(folder):
  return sum(path.read_bytes().count(b"\n") for path in _records(folder))


def _records(folder: pathlib.Path) -> list[pathlib.Path]:
  """Every metrics.jsonl of a run or a frontier; a search of all folders would meet those that a save renames."""
  return sorted(path for pattern in ("metrics.jsonl", "runs/*/metrics.jsonl") for path in folder.glob(pattern))


def metrics(folder: pathlib.Path) -> list[dict]:
  """All rows, without what no two runs share."""
  return [row for path in _records(folder) for row in timeless(path)]


def turns(folder: pathlib.Path) -> list[list]:
  """Scored prompts of all lives together: [step, names of its prompts], each once, in order."""
  path = folder / "turns.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  return sorted(json.loads(line) for line in set(lines))


def differences(folder: pathlib.Path, expected: pathlib.Path) -> list[str]:
  """Lists everything that is not bit by bit the same."""
  found, wanted = np.load(folder / "final.npz"), np.load(expected / "final.npz")
  names = sorted({*found.files, *wanted.files})
  same = lambda name: name in found and name in wanted and found[name].tobytes() == wanted[name].tobytes()
  wrong = [name for name in names if not same(name)]
  rows, wanted_rows = metrics(folder), metrics(expected)
  if [row["step"] for row in rows] != [row["step"] for row in wanted_rows]:
    wrong.append(f"steps {[row['step'] for row in rows]}")
  if turns(folder) != turns(expected):
    wrong.append(f"prompts {[turn for turn in turns(folder) if turn not in turns(expected)]}")
  return wrong + [f"metrics of step {row['step']}" for row, own in zip(wanted_rows, rows) if row != own]


def main(folder: pathlib.Path, kills: int, steps: int, kinds: list[str]) -> dict:
  """Kills runs of each kind, lets each go on to its end, and compares them all."""
  jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  found = {kind: of_kind(kind, folder / kind, -(-kills // len(kinds)), steps) for kind in kinds}
  total = lambda name: sum(one[name] for one in found.values())
  counts = {name: total(name) for name in ("kills", "saving", "running", "runs", "resumed", "seconds")}
  lists = {name: sum((one[name] for one in found.values()), []) for name in ("damaged", "differences")}
  machine = {"steps_of_a_run": steps, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
  return counts | lists | machine | {"kinds": found}


def of_kind(kind: str, folder: pathlib.Path, kills: int, steps: int, seed: int = 0) -> dict:
  """Kills runs of one kind until so many kills are done, and compares those that got through."""
  started, expected = time.monotonic(), folder / "whole"
  folder.mkdir(parents=True, exist_ok=True)
  assert os.waitpid(fork(live, kind, expected, steps), 0)[1] == 0
  killed, done, wrong = [], 0, []
  rng = random.Random(seed)
  while len(killed) < kills or (folder / f"run{done}").exists():
    place = folder / f"run{done}"
    child = fork(live, kind, place, steps)
    if len(killed) < kills:
      if how := kill_once(child, place, rng, late=not killed):
        killed.append([done, _rows(place), how])
        continue
    else:
      assert os.waitpid(child, 0)[1] == 0
    wrong += [f"{kind} run {done}: {what}" for what in differences(place, expected)]
    done += 1
  notes = [line for path in folder.glob("run*/notes.txt") for line in path.read_text().splitlines()]
  count = lambda kind: sum(how == kind for *_, how in killed)
  return {
    "kills": len(killed),
    "saving": count("saving"),
    "running": count("running"),
    "runs": done,
    "resumed": sum("resuming at" in line for line in notes),
    "damaged": [line for line in notes if "damaged" in line],
    "differences": wrong,
    "seconds": round(time.monotonic() - started),
    "each_kill": killed,  # [run, rows of metrics.jsonl, how]
  }


if __name__ == "__main__":
  from tests.loops import killed_runs  # the module that the config's reward function belongs to, with its `scored`
  from tests.loops import kinds_of_run

  chosen = sys.argv[4:] or list(kinds_of_run.KINDS)
  print(json.dumps(killed_runs.main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), chosen)))
