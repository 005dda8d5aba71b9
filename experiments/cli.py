"""The command line every program here shares: --config, --workdir, --dry_run and --config.KEY=VALUE."""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import difflib
import importlib.util
import inspect
import logging
import pathlib
import re
import sys
import traceback
from typing import NoReturn

from ml_collections.config_dict import ConfigDict

from experiments import overrides
from experiments.run import compilations
from experiments.run import distributed
from qempo_jax.errors import InputError
from qempo_jax.paths import expand_path

Main = Callable[..., None]  # (config, workdir, dry_run, and any of _FLAGS by name)

_LONG = re.compile(r"(\S{300})\S+(\S{30})")  # A word of a message that is no word.
_OVERRIDE = re.compile(r"--config\.(?P<key>[\w.]+)=(?P<value>.*)", re.DOTALL)


def run(
  main: Main,
  *,
  description: str,
  example: str,
  argv: Sequence[str] | None = None,
  needs_workdir: bool = True,
  of_run: Sequence[str] | None = None,
) -> None:
  """Parses the command line and calls `main(config, workdir, dry_run)`, with the flag --checkpoint where main has one.

  A mistake of the user's (`InputError`) ends in one line on stderr and exit code 2, an interrupt in exit code
  130. Any other exception keeps its traceback.

  Args:
    main: The program. It gets a complete, locked config.
    description: Purpose of the program, for --help.
    example: A whole command line to copy, for --help.
    argv: The arguments, without the program's name; None means those of this process.
    needs_workdir: True requires --workdir; otherwise `main` may get None.
    of_run: Of a program that reads a run's workdir: it takes the run's own config where --config is not given, and then
      only keys of these groups may be set.
  """
  workdir = None
  with contextlib.suppress(AttributeError):  # A replaced stream.
    sys.stdout.reconfigure(errors="backslashreplace")  # Texts may hold what the terminal's encoding lacks.
  for library in ("absl", "asyncio"):  # By these, Orbax logs tracebacks of errors that it also raises.
    logging.getLogger(library).setLevel(logging.CRITICAL)
  sys.unraisablehook = _unraisable
  try:
    own = [name for name in _FLAGS if name in inspect.signature(main).parameters]
    arguments, extra = _parser(description, example, needs_workdir, own, of_run is not None).parse_known_args(argv)
    workdir = arguments.workdir
    config = complete_config(*_chosen(arguments, extra, of_run))
    if "compute" in config and config.compute.distributed:
      distributed.start()
    compilations.keep()
    main(config, workdir, arguments.dry_run, **{name: getattr(arguments, name) for name in own})
    if arguments.dry_run and distributed.is_writer():
      print(overrides.resolved(config))
  except InputError as error:
    line = _LONG.sub(r"\1...\2", " ".join(str(error).split()))
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:  # The machine's own: a full or read-only disk, a folder that is gone, too many open files.
    if error.errno is None:
      raise
    what = f"{error.filename}: " if error.filename else ""
    print(f"error: {what}{error.strerror}; mend the cause, then start the same command again", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    kept = f"; what it has written is in {workdir}" if workdir and workdir.exists() else ""
    print(f"\nInterrupted{kept}.", file=sys.stderr)
    sys.exit(130)


def _unraisable(unraisable, otherwise=sys.unraisablehook) -> None:
  """Leaves out what TensorStore's threads print where one write of a save failed: Orbax does not await the others."""
  if str(unraisable.exc_value) != "Event loop is closed":
    otherwise(unraisable)


def _chosen(arguments, extra: Sequence[str], of_run: Sequence[str] | None) -> tuple[pathlib.Path, Sequence[str]]:
  """(the config file, overrides); the workdir's own where none is given."""
  if arguments.config:
    return arguments.config, extra
  path = arguments.workdir / "config.json"
  if not path.is_file():
    state = "holds no run" if arguments.workdir.is_dir() else "does not exist"
    raise InputError(
      f"{arguments.workdir} {state}, so its config is not known: correct --workdir, or give --config=FILE."
    )
  for argument in extra:
    key = _split_override(argument)[0]
    if key.partition(".")[0] not in of_run:
      may = f"set keys of {' and '.join(f'{group}.*' for group in of_run)} alone" if of_run else "leave it out"
      raise InputError(f"--config.{key} is the run's own, from {path}: {may}, or give --config too.")
  return path, extra


def complete_config(path: pathlib.Path, extra: Sequence[str]) -> ConfigDict:
  """Returns the config of a file with overrides such as "--config.KEY=VALUE", complete and locked."""
  config = load_config(path)
  for argument in extra:
    overrides.apply_override(config, *_split_override(argument))
  overrides.require_complete(config)
  config.lock()
  return config


def load_config(path: pathlib.Path) -> ConfigDict:
  """Runs `get_config()` of a config file.

  Args:
    path: A Python file that defines `get_config() -> ConfigDict`; FILE.py:ARGUMENT calls `get_config(ARGUMENT)`. Or the
      config.json of a run.

  Returns:
    The config.

  Raises:
    InputError: The file is absent or broken, or misuses a key; names the line.
  """
  if path.suffix == ".json":
    return overrides.of_json(path)
  name, marked, argument = str(path).partition(".py:")
  path = pathlib.Path(f"{name}.py") if marked else path
  if not path.is_file():
    siblings = [str(file) for file in sorted(path.parent.glob("*.py")) if file.stem != "__init__"]
    close = difflib.get_close_matches(str(path), siblings, n=1)
    hint = f"did you mean {close[0]}?" if close else "name a file, such as --config=configs/demo.py."
    raise InputError(f"There is no config file {path}: {hint}")
  spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise InputError(f"The config file {path} is not a Python file (.py).")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(argument) if marked else module.get_config()
  except InputError:
    raise
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # A config is a program of the user's: say where it fails, for every exception.
    raise InputError(_config_failure(path, error)) from error
  if not isinstance(config, ConfigDict):
    raise InputError(f"get_config() of {path} returns {type(config).__name__}: it must return a ConfigDict.")
  return config


class Parser(argparse.ArgumentParser):
  """Raises InputError where argparse would print its usage and exit."""

  def error(self, message: str) -> NoReturn:
    """Raises the message as InputError."""
    raise InputError(f"{message}; --help shows an example.")


def _checkpoint(text: str) -> str | int:
  if text in ("best", "last"):
    return text
  if not (text.isascii() and text.isdigit() and len(text) < 19):
    raise argparse.ArgumentTypeError(f"{text!r} is not best, last or the number of a step")
  return int(text)


# Flags of some programs: those whose `main` has a parameter of that name. (type, placeholder, help)
_FLAGS = {
  "checkpoint": (
    _checkpoint,
    "best|last|STEP",
    "which to read; default: best where a constraint has a bound, else last",
  )
}


def _parser(
  description: str, example: str, needs_workdir: bool, own: Sequence[str], reads_run: bool
) -> argparse.ArgumentParser:
  parser = Parser(
    description=description,
    epilog=f"example:\n  {example}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    usage="%(prog)s "
    + ("[--config=FILE] " if reads_run else "--config=FILE ")
    + "--workdir=DIR " * needs_workdir
    + "".join(f"[--{name}={_FLAGS[name][1]}] " for name in own)
    + "[--dry_run] [--config.KEY=VALUE ...]",
    allow_abbrev=False,
  )
  for flag, metavar, text in (
    ("--config", "FILE", "config file, in configs/" + "; default: the workdir's own config.json" * reads_run),
    ("--workdir", "DIR", "where everything is written"),
  ):
    required = not reads_run if flag == "--config" else needs_workdir
    parser.add_argument(flag, type=_path, required=required, metavar=metavar, help=text)
  for name in own:
    kind, metavar, text = _FLAGS[name]
    parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
  parser.add_argument(
    "--dry_run", action="store_true", help="build everything, print shapes, memory and config, then stop"
  )
  parser.add_argument_group("overrides", "--config.KEY=VALUE sets one key; dots lead into groups: a.b=1")
  return parser


def _path(text: str) -> pathlib.Path:
  try:
    return expand_path(text)
  except InputError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def _split_override(argument: str) -> tuple[str, str]:
  if match := _OVERRIDE.fullmatch(argument):
    return match["key"], match["value"]
  if argument.startswith("--config."):
    raise InputError(f"{argument} has no value: write {argument.split('=')[0]}=VALUE.")
  flags = ["--config", "--workdir", "--dry_run", "--help"]
  close = overrides.nearest(argument.split("=")[0], flags)
  hint = f"did you mean {close}?" if close else "--help lists the arguments."
  raise InputError(f"Unknown argument {argument}: {hint}")


def _config_failure(path: pathlib.Path, error: BaseException) -> str:
  """Says in one line where and why a config file failed."""
  if isinstance(error, SyntaxError) and error.filename == str(path):
    return f"{path}, line {error.lineno}: {error.msg}; correct the config file."
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  reason = str(error.args[0]) if error.args else type(error).__name__
  if missing := re.search(r'Key "(.+?)" does not exist', reason):
    close = re.search(r'Did you mean "(.+?)" instead', reason)
    reason = f"there is no config key {missing[1]!r}" + (f", did you mean {close[1]}?" if close else "")
  where = f"{path}, line {lines[-1]}" if lines else str(path)
  reason = reason.splitlines()[0] if reason else ""
  return f"{where}: {type(error).__name__}: {reason}; correct the config file."
