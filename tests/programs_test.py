"""Every verb of `experiments`: a help that fits a screen, a dry run that says all and writes nothing, exit codes."""

import dataclasses
import functools
import gzip
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import jax
from ml_collections import ConfigDict
import pytest

from experiments import build
from experiments import cli
from experiments import compile_check
from experiments import demo
from experiments import evaluate
from experiments import export
from experiments import feasibility
from experiments import inspect_data
from experiments import make_pairs
from experiments import train
from experiments import train_sentiment
from experiments.compile import dry_run
from experiments.compile import programs
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from tests.loops import toy

ROOT = pathlib.Path(__file__).parents[1]
_policy = functools.cache(toy.policy)
COMMAND = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
VERBS = sorted(
  path.stem for path in (ROOT / "experiments").glob("*.py") if COMMAND.search(path.read_text(encoding="utf-8"))
)


@pytest.fixture
def call(monkeypatch, capsys):
  """Runs a verb as `python -m` does, in this process; returns its exit code, stdout and stderr."""

  def run(verb, *arguments):
    path = str(ROOT / "experiments" / f"{verb}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    environment = dict(os.environ)
    code = 0
    try:
      runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
      code = stop.code or 0
    finally:
      os.environ.clear()
      os.environ.update(environment)
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return run


def test_every_verb_is_found():
  assert {"train", "demo", "feasibility", "export", "train_reward_model", "inspect_data"} <= set(VERBS)
  assert {"make_pairs", "compile_check", "train_sentiment", "evaluate"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_screen_and_shows_an_example_of_files_that_exist(call, verb):
  code, out, _ = call(verb, "--help")
  lines = out.splitlines()
  assert code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 140
  assert f"python -m experiments.{verb} --" in out and "--dry_run" in out
  example = next(line for line in lines if f"python -m experiments.{verb}" in line)
  assert all((ROOT / path).is_file() for path in re.findall(r"--config=(\S+?\.py)", example))


@pytest.mark.parametrize("verb", VERBS)
def test_bad_input_is_one_line_and_exit_code_2(call, verb, tmp_path):
  mistakes = [[], ["--nonsense=1"]]
  mistakes += [["--data", str(tmp_path)]] if verb == "train_sentiment" else [[f"--config={tmp_path}/absent.py"]]
  for arguments in mistakes:
    code, out, err = call(verb, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: "), arguments


@pytest.fixture
def config(tmp_path, monkeypatch):
  """The toy's config, which every program loads, and its model."""
  found = toy.config(tmp_path)
  monkeypatch.setattr(build_policy, "policy", lambda config: _policy())
  monkeypatch.setattr(cli, "load_config", lambda path: found)
  return found


@pytest.fixture
def dry(config, tmp_path, capsys):
  """The output of a dry run, after which nothing new is on the disk."""

  def run(module, *arguments):
    before = sorted(tmp_path.rglob("*"))
    argv = ["--config=any.py", f"--workdir={tmp_path / 'run'}", "--dry_run", *arguments]
    cli.run(module.main, description="", example="", argv=argv)
    assert sorted(tmp_path.rglob("*")) == before
    return capsys.readouterr().out

  return run


def _says_all(out, config):
  parameters = sum(leaf.size for leaf in jax.tree.leaves(_policy().params))
  assert f"Model: {parameters:,} parameters (float32), 2 layers of width 32" in out
  assert "Memory of a device: at least" in out
  assert f"\n  seed={config.seed}\n" in out and "\n  constraints.quality.bound=" in out


def test_a_dry_run_of_online_training(dry, config):
  out = dry(train)
  _says_all(out, config)
  rows, size = config.data.prompts_per_step, config.sampling.group_size
  assert f"float32[{rows}, {size + config.replay.size}]" in out and "sampler: takes" in out
  assert "keys and values while sampling" in out


def test_a_dry_run_shows_overrides(dry):
  assert "\n  seed=77\n" in dry(train, "--config.seed=77")


def test_a_dry_run_refuses_what_a_first_step_would(dry, monkeypatch, capsys):
  policy = _policy()
  splash = policy._replace(config=dataclasses.replace(policy.config, attention="splash"))
  monkeypatch.setattr(build_policy, "policy", lambda config: splash)
  for argument, words in (
    ("--config.seed=1", "compute.attention=splash"),
    ("--config.checkpoint.folder=/dev/null/a", ""),
    ("--config.checkpoint.folder=/dev/null", "Can't write the checkpoints' folder /dev/null"),
  ):
    with pytest.raises(SystemExit):
      dry(train, *[argument, "--config.checkpoint.every=0"])
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize("module", [make_pairs, feasibility, evaluate], ids=lambda module: module.__name__)
def test_a_dry_run_of_what_samples(dry, config, module):
  config.constraints.quality.bound, config.constraints.kl.start = 0.4, 0.0
  _says_all(dry(module), config)


def test_a_dry_run_of_export(dry, config, tmp_path):
  out = dry(export)
  assert "Model: " in out and f"would be exported to {tmp_path / 'run' / 'export'}" in out and "\n  seed=" in out


def test_a_dry_run_of_the_demo(dry, config, tmp_path, monkeypatch):
  of_methods = ConfigDict({"seeds": (0,), "methods": ("qempo_kl",)})
  of_methods.qempo_kl = config
  config.constraints.quality.bound = 0.5
  monkeypatch.setattr(cli, "load_config", lambda path: of_methods)
  out = dry(demo)
  assert out.count("Memory of a device") == 1 and "qempo_kl:\nModel: " in out and "\n  qempo_kl.seed=" in out


def test_a_dry_run_of_inspection(dry, config, monkeypatch):
  monkeypatch.setattr(build_data, "examples", lambda *args: _no_examples())
  monkeypatch.setattr(build_policy, "load_tokenizer", lambda config: toy.ToyTokenizer())
  monkeypatch.setattr(inspect_data.inspection, "summarise", lambda *args, **kwargs: _Summary())
  monkeypatch.setattr(inspect_data, "padding", lambda *args: 0.25)
  out = dry(inspect_data)
  assert "Example" not in out and "padding 25.0%" in out and "\n  seed=" in out


class _Summary:
  def lines(self):
    return ["a line"]


def _no_examples():
  return [object()], "1 prompt"


def test_memory_counts_each_part_once(config):
  policy = _policy()
  plan = build.plan(config, policy)
  parts = dry_run.memory(plan, programs.of_plan(plan))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.params))
  assert parts["trained parameters"] == parts["reference"] == parts["gradients"] == size
  assert 2 * size <= parts["optimizer"] <= 2 * size + 64  # two moments, and a few scalars
  assert parts["logits of a block"] == 8 * config.compute.chunk_size * 6


def test_a_dry_run_of_a_compile_check_compiles_nothing(capsys, monkeypatch):
  monkeypatch.setattr(compile_check, "devices", lambda topology, slices: jax.devices()[:1])
  monkeypatch.setattr(compile_check, "check", None)
  assert compile_check.main(["--config=configs/online_qempo_kl.py", "--topology=v5e:1x1", "--dry_run"]) == 0
  out = capsys.readouterr().out
  assert "online_step: takes" in out and "Memory of a device: at least" in out and "\n  seed=0\n" in out


def test_a_dry_run_of_the_sentiment_classifier(tmp_path, capsys):
  for name in (train_sentiment.SENTENCES, train_sentiment.REVIEWS):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
      file.writelines(json.dumps({"text": f"{name} {i}", "label": i % 2, "fold": i % 10}) + "\n" for i in range(10))
  out = tmp_path / "classifier.npz"
  train_sentiment.run([f"--data={tmp_path}", f"--out={out}", "--dry_run"])
  assert not out.exists() and not out.with_suffix(".json").exists()
  printed = capsys.readouterr().out
  assert "16 training texts, held out 2 sentences, 2 reviews" in printed and "num_steps=150" in printed


@pytest.mark.slow
def test_a_failure_exits_1_with_its_traceback(tmp_path):
  """Real processes: what `python -m` itself adds."""
  broken = tmp_path / "config.py"
  broken.write_text(
    "from configs import base\ndef get_config():\n  c = base.get_config()\n  c.data.source = 'jsonl:'\n  return c\n"
  )
  command = [sys.executable, "-m", "experiments.inspect_data", f"--config={broken}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
  program = "from experiments import inspect_data, cli; inspect_data.padding = None; cli.run(inspect_data.main, description='', example='')"
  done = subprocess.run(
    [sys.executable, "-c", program, "--config=configs/offline_dpo.py", "--workdir=w"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
  "verb", ["train", "train_reward_model", "export", "make_pairs", "inspect_data", "evaluate", "feasibility", "demo"]
)
def test_a_config_of_the_other_kind_is_said_in_a_line(call, tmp_path, verb):
  config = "online_qempo_kl" if verb == "demo" else "demo"
  code, _, err = call(verb, f"--config={ROOT / 'configs' / config}.py", f"--workdir={tmp_path / 'w'}")
  assert code == 2 and len(err.splitlines()) == 1 and "this config holds" in err


def test_a_method_without_a_config_is_named(call, tmp_path):
  code, _, err = call(
    "demo", f"--config={ROOT / 'configs' / 'demo.py'}", f"--workdir={tmp_path / 'w'}", "--config.methods=foo"
  )
  assert code == 2 and "names 'foo', which has no config" in err
