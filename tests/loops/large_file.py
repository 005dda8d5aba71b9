"""Time to the first update and memory of a run on a large file: `python -m tests.loops.large_file FOLDER ROWS BYTES`.

The file has ROWS rows of about BYTES each, a prompt and a long column. It is made where it is absent; a second call finds it, and
the rows that the first one stored in FOLDER too.
"""

import json
import os
import pathlib
import random
import resource
import sys
import time

from tests.loops import toy

_WORDS = "so that every answer counts once and no prompt is seen twice before all others were".split()


def reward(prompts, completions, **columns):
  """Half of what there is to get."""
  return [0.5] * len(prompts)


def write(path: pathlib.Path, rows: int, size: int) -> None:
  """Writes rows of different prompts and texts."""
  draw = random.Random(0)
  words = " ".join(draw.choices(_WORDS, k=10_000 + size))
  with open(path, "w", encoding="utf-8") as file:
    for _ in range(rows):
      prompt = " ".join(str(draw.randint(1, 5)) for _ in range(9))
      start = draw.randrange(10_000)
      text = words[start : start + max(0, size - 60)]
      file.write(json.dumps({"prompt": prompt, "solution": text}) + "\n")


class _First(toy.Silent):
  """A display that keeps when the first update was through."""

  def step(self, step, metrics):
    """Keeps the time."""
    self.at = time.monotonic()


def main(folder: pathlib.Path, rows: int, size: int) -> dict:
  """Trains one step on the file."""
  os.environ["QEMPO_CACHE_DIR"] = str(folder / "cache")
  path = folder / f"rows{rows}x{size}.jsonl"
  if not path.exists():
    write(path, rows, size)
  (folder / "run").mkdir(exist_ok=True)
  config = toy.small(toy.config(folder))
  config.data.source, config.steps = f"jsonl:{path}", 1
  config.reward.function = "tests.loops.large_file.reward"
  policy, display, before = toy.policy(), _First(), _peak()
  started = time.monotonic()
  cpu = time.process_time()
  toy.train(config, folder / "run", policy, display)
  return {
    "rows": rows,
    "file_mb": round(path.stat().st_size / 1e6),
    "seconds": round(display.at - started, 1),
    "cpu_seconds": round(time.process_time() - cpu, 1),
    "peak_mb": round(_peak()),
    "peak_before_mb": round(before),
    "load_average": os.getloadavg()[0],
  }


def _peak() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
  place = pathlib.Path(sys.argv[1])
  place.mkdir(parents=True, exist_ok=True)
  print(json.dumps(main(place, *map(int, sys.argv[2:]))))
