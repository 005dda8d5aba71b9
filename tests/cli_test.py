"""The command line: overrides with their types, one clear line for each mistake, exit codes."""

import errno
import os
import pathlib
import re
import subprocess
import sys

from ml_collections.config_dict import ConfigDict
import pytest

from configs import base
from experiments import cli
from qempo_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
from ml_collections import config_dict

def get_config():
  config = config_dict.ConfigDict(dict(
    seed=0, name="base", use_kl=False, sizes=(1, 2), words=("a",), empty=(), note=None,
    policy=dict(learning_rate=1e-3, layers=2), dual=dict(max_kl=config_dict.placeholder(float))))
  config.floor = config_dict.required_placeholder(float)
  return config
"""
LOCKED = "from ml_collections import config_dict\nc = config_dict.ConfigDict(dict(seed=0)).lock()\n"


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "toy.py"
  path.write_text(CONFIG)
  return path


@pytest.fixture
def call(config_file, tmp_path):
  """Runs the command line with the given arguments; returns what the program got."""
  got = []

  def run(*arguments, main=lambda *args: None):
    def record(*args):
      got.append(args)
      main(*args)

    standard = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--config.floor=0.5"]
    cli.run(record, description="Does it.", example="python -m it", argv=[*standard, *arguments])
    return got[-1]

  return run


def failure(call, capsys, *arguments, code=2, **kwargs):
  """Returns the one line a failing call prints."""
  with pytest.raises(SystemExit) as caught:
    call(*arguments, **kwargs)
  assert caught.value.code == code
  captured = capsys.readouterr()
  assert captured.out == "" and captured.err.strip().count("\n") == 0
  return captured.err.strip()


def test_the_program_gets_a_locked_config_a_path_and_dry_run(call, tmp_path):
  config, workdir, dry_run = call()
  assert isinstance(config, ConfigDict) and config.is_locked
  assert workdir == tmp_path / "run" and not workdir.exists()
  assert dry_run is False
  assert call("--dry_run")[2] is True


@pytest.mark.parametrize(
  ("override", "expected"),
  [
    ("seed=7", 7),
    ("name=two words = ok", "two words = ok"),
    ("use_kl=True", True),
    ("use_kl=no", False),
    ("policy.learning_rate=5", 5.0),
    ("policy.learning_rate=-1e-6", -1e-6),
    ("sizes=3", (3,)),
    ("sizes=(4, 5,6)", (4, 5, 6)),
    (
      "empty=(('a','mine.f',1.0,'none',None),('b','length',0.0,'none',.6))",
      (("a", "mine.f", 1.0, "none", None), ("b", "length", 0.0, "none", 0.6)),
    ),
    ("empty=[['a', 1]]", (("a", 1),)),
    ("words=x,y", ("x", "y")),
    (r"empty=(' x\n', '3')", (" x\n", "3")),
    ("empty=1,b", (1, "b")),
    ("dual.max_kl=2", 2.0),
    ("dual.max_kl=none", None),
    ("note=3.5", 3.5),
    ("note=plain text", "plain text"),
  ],
)
def test_overrides_take_the_type_of_the_key(call, override, expected):
  value = call(f"--config.{override}")[0]
  for part in override.split("=")[0].split("."):
    value = value[part]
  assert value == expected and type(value) is type(expected)
  if isinstance(expected, tuple):
    assert [type(item) for item in value] == [type(item) for item in expected]


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    (
      "--config.polcy.learning_rate=1",
      ["'polcy.learning_rate'", "did you mean policy.learning_rate?"],
    ),
    ("--config.learning_rate=1", ["'learning_rate'", "did you mean policy.learning_rate?"]),
    ("--config.policy.learning_rat=1", ["did you mean policy.learning_rate?"]),
    ("--config.seed.value=1", ["'seed.value'"]),
    ("--config.zzz=1", ["'zzz'", "valid keys are", "seed"]),
    ("--config.policy=1", ["group of keys", "policy.layers"]),
    ("--config.seed=1.5", ["seed", "a whole number", "0"]),
    ("--config.policy.learning_rate=fast", ["expects a number", "0.001"]),
    ("--config.policy.learning_rate=nan", ["expects a number"]),
    ("--config.policy.learning_rate=none", ["expects a number (now"]),
    ("--config.dual.max_kl=x", ["expects a number or none"]),
    ("--config.use_kl=maybe", ["true or false"]),
    ("--config.sizes=1,x", ["values with commas"]),
    ("--config.seed", ["no value", "--config.seed=VALUE"]),
    ("--dryrun", ["--dryrun", "did you mean --dry_run?"]),
    ("stray", ["stray"]),
  ],
)
def test_each_mistake_is_one_line_that_names_the_remedy(call, capsys, argument, words):
  line = failure(call, capsys, argument)
  assert line.startswith("error: ")
  for word in words:
    assert word in line


def test_checkpoint_is_a_flag_of_programs_that_take_one(config_file, tmp_path, capsys):
  got = []

  def main(config, workdir, dry_run, checkpoint=None):
    got.append(checkpoint)

  argv = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--config.floor=0.5"]
  for more in ([], ["--checkpoint=best"], ["--checkpoint=last"], ["--checkpoint=40"]):
    cli.run(main, description="", example="", argv=argv + more)
  assert got == [None, "best", "last", 40]
  for wrong in ("newest", "-1", "1.5", "", "1e3"):
    line = failure(
      lambda *more: cli.run(main, description="", example="", argv=[*argv, *more]), capsys, f"--checkpoint={wrong}"
    )
    assert f"--checkpoint: {wrong!r} is not best, last or the number of a step" in line


def test_checkpoint_is_unknown_to_other_programs(call, capsys):
  assert "Unknown argument --checkpoint=best" in failure(call, capsys, "--checkpoint=best")


def test_a_key_without_default_must_be_given(config_file, capsys):
  def call():
    argv = [f"--config={config_file}", "--workdir=w"]
    cli.run(lambda *_: None, description="", example="", argv=argv)

  assert "floor has no default: add --config.floor=VALUE" in failure(call, capsys)


def test_all_keys_without_default_are_named_at_once():
  keys = "constraints.quality.bound and data.source and reward.function have no default"
  with pytest.raises(InputError, match=f"{keys}: add --config.constraints.quality.bound=VALUE --config.data.source"):
    cli.complete_config(ROOT / "configs" / "my_reward.py", [])


def test_required_arguments_are_named(capsys):
  def call():
    cli.run(lambda *_: None, description="", example="", argv=["--workdir=w"])

  assert "--config" in failure(call, capsys)


def test_an_absent_config_file_names_its_neighbour(config_file):
  with pytest.raises(InputError, match=f"did you mean {config_file}"):
    cli.load_config(config_file.with_name("tooy.py"))
  with pytest.raises(InputError, match="There is no config file"):
    cli.load_config(config_file.parent)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("x = (\n", "line 1"),
    ("y = 1\n", "get_config"),
    ("def get_config():\n  return {}\n", "returns dict"),
    (LOCKED + "c.sed = 1\n", "line 3: .*there is no config key 'sed', did you mean seed"),
    (LOCKED + "c.seed = 'x'\n", "line 3: .*'seed'"),
    ("import absent_module\n", "line 1.*absent_module"),
  ],
)
def test_a_broken_config_file_is_one_line(call, capsys, config_file, text, words):
  config_file.write_text(text)
  line = failure(call, capsys)
  assert str(config_file) in line
  assert re.search(words, line), line


def test_input_errors_of_the_program_are_one_line(call, capsys):
  def main(*_):
    raise InputError("the floor\n  is too high")

  assert failure(call, capsys, main=main) == "error: the floor is too high"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE])
def test_a_fault_of_the_machine_is_one_line(call, capsys, number):
  def main(*_):
    raise OSError(number, os.strerror(number), "a/file")

  assert failure(call, capsys, main=main).startswith(f"error: a/file: {os.strerror(number)}; mend the cause")


def test_no_word_of_a_message_fills_the_screen(call, capsys):
  assert len(failure(call, capsys, f"--config.seed={'(' * 30_000}")) < 800
  assert (
    len(failure(call, capsys, f"--config.note={'-' * 30_000}1", "--config.seed=x")) < 800
  )  # MemoryError of the parser


def test_a_config_that_exits_does_not_end_the_program_in_success(call, capsys, config_file):
  config_file.write_text("import sys\n\nsys.exit(0)\n")
  assert "line 3: SystemExit: 0; correct the config file" in failure(call, capsys)


def test_an_interrupt_exits_130_and_says_what_is_kept(call, capsys):
  def main(config, workdir, dry_run):
    workdir.mkdir()
    raise KeyboardInterrupt

  assert "Interrupted; what it has written is in" in failure(call, capsys, main=main, code=130)


def test_other_exceptions_keep_their_traceback(call):
  def main(*_):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    call(main=main)


def test_help_fits_a_screen_and_shows_the_example(call, capsys):
  with pytest.raises(SystemExit) as caught:
    call("--help")
  assert caught.value.code == 0
  text = capsys.readouterr().out
  assert "python -m it" in text and "--config.KEY=VALUE" in text
  assert text.count("\n") <= 24 and max(map(len, text.splitlines())) <= 100


def test_exit_codes_of_a_real_process(config_file):
  program = "from experiments import cli; cli.run(lambda *_: 1 / 0, description='', example='')"
  command = [sys.executable, "-c", program, f"--config={config_file}", "--workdir=w"]

  def run(argument):
    return subprocess.run([*command, argument], cwd=ROOT, capture_output=True, text=True, check=False)

  wrong = run("--config.flor=1")
  assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
  assert "did you mean floor?" in wrong.stderr and "Traceback" not in wrong.stderr
  crash = run("--config.floor=1")
  assert crash.returncode == 1 and "ZeroDivisionError" in crash.stderr


def test_a_program_that_reads_a_run_takes_its_config_from_the_workdir(tmp_path, capsys):
  config, got = base.get_config(), []
  config.constraints.mine, config.steps = base.constraint("length", gain=0.1), 7
  config.reward.functions = (("a", "length", 1.0, "none", None),)
  call = lambda *arguments: cli.run(
    lambda *found: got.append(found[0]), description="", example="", of_run=("export",),
    argv=[f"--workdir={tmp_path}", *arguments],
  )  # fmt: skip
  assert "holds no run" in failure(call, capsys)
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  call("--config.export.dtype=bfloat16")
  config.export.dtype = "bfloat16"
  assert got[0].to_dict() == config.to_dict() and got[0].is_locked
  assert "--config.steps is the run's own" in failure(call, capsys, "--config.steps=3")
  for text, words in (
    ('{"method"', "cannot be read"),
    ("null", "is no JSON object"),
    ('{"method": "qempo"}', "holds no config of a run"),
    ('{"method": "qempo", "steps": "x"}', "has a value of another type"),
    ('{"method": "qempo", "steps": 1, "constraints": null}', "has a value of another type"),
  ):
    (tmp_path / "config.json").write_text(text)
    line = failure(call, capsys)
    assert words in line and "give --config=FILE" in line
