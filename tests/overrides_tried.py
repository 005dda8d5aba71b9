"""Overrides tried through the verbs: each is refused in one line, or its dry run passes and so does a run of two steps.

`python -m tests.overrides_tried FOLDER [RANDOM CHOSEN]` prints the counts and every case that is neither, as JSON. Some values are
folders that a run makes where it was started, which is FOLDER/cwd.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback

import jax

from configs import base
from experiments import cli
from experiments import overrides
from experiments import train
from experiments import train_reward_model
from experiments.configured import ranges
from qempo_jax.models import export
from qempo_jax.models import parameters
from tests import ranges_test
from tests.loops import reward_model_test

MAINS = {"online": train.main, "offline": train.main, "reward_model": train_reward_model.main}
# Values that a dry run once accepted and a run did not survive, and their neighbours.
ONCE_ACCEPTED = {
  "compute.bucket": ("0", "-1", "1"), "steps": ("-1", "0", "1"), "seed": ("-1", "2147483647", "2147483648", "99999999999999999999"),
  "compute.chunk_size": ("0", "-5", "1"), "optimizer.learning_rate": ("inf", "-1", "0", "1e30"), "optimizer.b1": ("2", "1", "0"),
  "optimizer.warmup_steps": ("-1", "0", "5"), "replay.size": ("-1", "2"), "sampling.slots": ("-1", "1", "3"), "duals.cap": ("inf", "0", "1e-30"),
  "sampling.temperature": ("inf", "0", "1e-30", "1e30"), "data.length_window": ("-1", "1", "100"), "checkpoint.keep": ("-1", "0", "2"),
  "checkpoint.folder": ("/dev/null", "elsewhere"), "compute.mesh": ("(2,1,1)", "(0,1,1)", "(1,1)", "(-1,-1,1)", "(1,1,1,1)"),
  "compute.micro_batches": ("0", "2", "3"), "sampling.logit_bias": ("((' w1',-1.0),)", "((17,None),)", "((99,1.0),)"),
  "sampling.stop_strings": ("w1", "('',)"), "lora.rank": ("0", "2", "-1"), "lora.targets": ("(", "nothing"), "method": ("grpo", "mara", "ucpo(tau=0.5)", "x"),
  "constraints.quality.bound": ("0.5", "1e30"), "constraints.length.bound": ("2", "-1"), "evaluation.every": ("1", "-1"),
}  # fmt: skip
_LIMIT = 150  # seconds of one case


class Hang(BaseException):
  """A case that took too long."""


def reward(prompts, completions, **columns):
  """Half of the words there are."""
  return [sum(word in ("w1", "w2", "w3") for word in text.split()) / 4 for text in completions]


def config(kind: str, folder: pathlib.Path):
  """A run of two steps on the tiny model in the folder."""
  config = reward_model_test.make_config(folder, folder / "tiny")
  config.steps, config.compute.mesh, config.checkpoint.every = 2, (1, 1, 1), 1
  config.data.source = f"jsonl:{folder / 'prompts.jsonl'}"
  config.data.max_prompt_length, config.sampling.max_response_length, config.sampling.group_size = 8, 4, 4
  config.reward.function, config.reward.max = "tests.overrides_tried.reward", 1.0
  config.evaluation.splits, config.evaluation.samples_per_prompt = (config.data.source,), 2
  if kind == "offline":
    config.data.source = config.reward_model.sources[0]
    config.offline.loss, config.offline.measure_every = "qempo", 1
  return config


def prepare(folder: pathlib.Path) -> None:
  """Makes the model, the data and a config file a kind."""
  params = parameters.init(jax.random.key(0), reward_model_test.MODEL, stddev=0.3)
  export.export_model(folder / "tiny", params, reward_model_test.MODEL, tokenizer=reward_model_test.tokenizer())
  rows = [json.dumps({"prompt": f"w{index} w{index + 1}"}) for index in range(8)]
  (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
  for kind in MAINS:
    lines = "import pathlib", "from tests import overrides_tried", "def get_config():"
    call = f"  return overrides_tried.config({kind!r}, pathlib.Path({str(folder)!r}))\n"
    (folder / f"{kind}.py").write_text("\n".join([*lines, call]), encoding="utf-8")


def at_random(count: int):
  """(kind, key, value), any of any."""
  draw, keys = random.Random(0), sorted(overrides.leaf_keys(base.get_config()))
  return [(draw.choice(list(MAINS)), draw.choice(keys), draw.choice(ranges_test.VALUES)) for _ in range(count)]


def chosen(count: int):
  """What was once accepted, then ends of ranges and their neighbours outside, until there are so many."""
  cases = [(_kind(key), key, text) for key, texts in ONCE_ACCEPTED.items() for text in texts]
  values, ends = dict(_typed(base.get_config())), []
  for key, row in ranges.ALLOWED.items():
    if isinstance(row, ranges.Range) and key in values:
      whole = isinstance(values[key], int)
      step = 1 if whole else 1e-6
      highest = (row.high, row.high + step) if row.high <= 20 else ()
      ends += [
        (_kind(key), key, f"{value:g}" if whole else repr(value)) for value in (row.low, row.low - step, *highest)
      ]
  return (cases + random.Random(0).sample(ends, len(ends)))[:count]


def _typed(config):
  for key in overrides.leaf_keys(config):
    value = config
    for part in key.split("."):
      value = value[part]
    yield key, value


def _kind(key: str) -> str:
  group = key.partition(".")[0]
  return group if group in ("offline", "reward_model") else "online"


def call(kind: str, folder: pathlib.Path, *arguments: str) -> tuple[str, str]:
  """(passed, refused, hang, traceback or a strange exit; what was said)."""
  argv = [f"--config={folder / kind}.py", f"--workdir={folder / 'run'}", *arguments]
  out, err = io.StringIO(), io.StringIO()
  signal.alarm(_LIMIT)
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      cli.run(MAINS[kind], description="", example="", argv=argv)
    how = "passed"
  except SystemExit as stop:
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    how = "refused" if stop.code == 2 and len(lines) == 1 else f"exit {stop.code}"
  except Hang:
    how = "hang"
  except Exception:
    how = "traceback"
    err.write(traceback.format_exc())
  finally:
    signal.alarm(0)
    shutil.rmtree(folder / "run", ignore_errors=True)
  return how, err.getvalue()


def _rang(*_):
  raise Hang


def main(folder: pathlib.Path, random_count: int, chosen_count: int) -> dict:
  """Tries all of them."""
  signal.signal(signal.SIGALRM, _rang)
  prepare(folder)
  found, wrong, started = {}, [], time.monotonic()
  for name, cases in (("random", at_random(random_count)), ("chosen", chosen(chosen_count))):
    counts = found[name] = collections.Counter()
    for kind, key, text in cases:
      for left in pathlib.Path.cwd().iterdir():  # such as another case's checkpoints, with which this run would be done
        shutil.rmtree(left) if left.is_dir() else left.unlink()
      argument = f"--config.{key}={text}"
      how, said = call(kind, folder, "--dry_run", argument)
      if how == "passed":
        of_run, said = call(kind, folder, argument)
        of_alarm = of_run == "refused" and "above alarms.max_entropy_per_token" in said
        how = "accepted" if of_run == "passed" else "stopped by its alarm" if of_alarm else f"run: {of_run}"
      counts[how] += 1
      if how not in ("refused", "accepted", "stopped by its alarm"):
        wrong.append([name, kind, argument, how, said[-1500:]])
        print(wrong[-1], file=sys.stderr, flush=True)
      if sum(counts.values()) % 20 == 0:
        print(name, dict(counts), round(time.monotonic() - started), file=sys.stderr, flush=True)
  return {"counts": found, "wrong": wrong, "seconds": round(time.monotonic() - started)}


if __name__ == "__main__":
  place = pathlib.Path(sys.argv[1])
  place.mkdir(parents=True, exist_ok=True)
  place = place.resolve()
  shutil.rmtree(place / "cwd", ignore_errors=True)
  (place / "cwd").mkdir()
  os.chdir(place / "cwd")
  print(json.dumps(main(place, *map(int, sys.argv[2:] or (400, 150)))))
