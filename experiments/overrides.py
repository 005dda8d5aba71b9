"""`--config.KEY=VALUE` from the command line, checked against the keys and types of a config.

Hand-written because `ml_collections.config_flags` cannot set a placeholder to none, takes `x,y` for one word and NaN for a
number, and ends a mistyped key in a traceback.
"""

import ast
from collections.abc import Iterator
import difflib
import pathlib
from typing import Any

from ml_collections.config_dict import ConfigDict
from ml_collections.config_dict import FieldReference
from ml_collections.config_dict import RequiredValueError

from configs import base
from qempo_jax.errors import InputError
from qempo_jax.errors import cause
from qempo_jax.paths import read_json

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_EXPECTED = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  tuple: "values with commas between them",
  list: "values with commas between them",
}


def apply_override(config: ConfigDict, key: str, text: str) -> None:
  """Sets one key of a config from text, converted to the type the key already has.

  Keys declared as placeholders also take `none`. Tuples are written `1,2,3` or `(1,2,3)`, and take the type of
  their present first element.

  Args:
    config: The config to change.
    key: Dotted key.
    text: The new value as typed by the user.

  Raises:
    InputError: There is no such key (names the nearest one), or the text isn't of its type.
  """
  parent, name = _find(config, key)
  stored = dict(parent.items(preserve_field_references=True))[name]
  optional = isinstance(stored, FieldReference)
  current = stored if not optional else None if stored.empty() else stored.get()
  expected = stored.get_type() if optional else type(stored)
  if isinstance(current, ConfigDict):
    raise InputError(f"--config.{key} is a group of keys: set one of {_listed(current, key)}.")
  try:
    empty = text.lower() == "none" and (optional or expected is type(None))
    value = None if empty else _convert(text, expected, current)
  except (ValueError, SyntaxError, TypeError) as error:
    what = _EXPECTED.get(expected, f"a {expected.__name__}") + " or none" * optional
    raise InputError(f"--config.{key}={text} is mistyped: {key} expects {what} (now {current!r}).") from error
  if optional:
    stored.set(value)
  else:
    parent[name] = value


def of_json(path: pathlib.Path) -> ConfigDict:
  """The config of a run from its config.json, with the types and the further keys of configs/base.py.

  Raises:
    InputError: the file is damaged, or of a version with other keys.
  """
  saved = read_json(path, "give --config=FILE")
  one = lambda tree: "method" in tree and "steps" in tree
  if not any(map(one, (saved, *(t for t in saved.values() if isinstance(t, dict))))):
    raise InputError(f"{path} holds no config of a run: give --config=FILE.")
  try:
    if one(saved):
      return _filled(base.get_config(), saved)
    groups = {
      name: _filled(base.get_config(), tree) if isinstance(tree, dict) and one(tree) else tree
      for name, tree in saved.items()
    }
    return ConfigDict({name: _tuples(value) for name, value in groups.items()})
  except (TypeError, ValueError) as error:
    raise InputError(f"{path} has a value of another type ({cause(error)}): give --config=FILE.") from error


def _filled(config: ConfigDict, saved: dict[str, Any]) -> ConfigDict:
  """The config with the saved values; keys that it lacks, such as a constraint of the user's own, are added."""
  with config.unlocked():
    for name, value in saved.items():
      if isinstance(config.get(name), ConfigDict):
        if not isinstance(value, dict):
          raise TypeError(f"{name} is no group of keys")
        _filled(config[name], value)
      else:
        config[name] = ConfigDict(value) if isinstance(value, dict) else _tuples(value)
  return config


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def require_complete(config: ConfigDict) -> None:
  """Raises InputError if keys that have no default were not given values; names them all."""
  lacking = []
  for key in leaf_keys(config):
    parent, name = _find(config, key)
    try:
      parent[name]
    except RequiredValueError:
      lacking.append(key)
  if lacking:
    verb = "key {} has" if len(lacking) == 1 else "keys {} have"
    values = " ".join(f"--config.{key}=VALUE" for key in lacking)
    raise InputError(f"The config {verb.format(' and '.join(lacking))} no default: add {values}.")


def leaf_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  """Yields the dotted key of every value in the config, in its own order."""
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      yield from leaf_keys(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


def resolved(config: ConfigDict) -> str:
  """Every key with its value, as it would be written on the command line."""
  lines = []
  for key in leaf_keys(config):
    value = config
    for part in key.split("."):
      value = value[part]
    lines.append(f"  {key}={value}")
  return "\n".join(["Config:", *lines])


def nearest(word: str, valid: list[str]) -> str | None:
  """Returns the valid word most like `word`, judged whole or by its last dotted part, if any is close."""
  if whole := difflib.get_close_matches(word, valid, n=1, cutoff=0.7):
    return whole[0]
  tails = {choice.rpartition(".")[2]: choice for choice in reversed(valid)}
  close = difflib.get_close_matches(word.rpartition(".")[2], list(tails), n=1, cutoff=0.7)
  return tails[close[0]] if close else None


def _find(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
  """Walks to the group that holds `key`; returns it and the key's last part."""
  *groups, name = key.split(".")
  node: Any = config
  for group in groups:
    node = node[group] if isinstance(node, ConfigDict) and group in node else None
  if not isinstance(node, ConfigDict) or name not in node:
    close = nearest(key, list(leaf_keys(config)))
    hint = f"did you mean {close}?" if close else f"valid keys are {_listed(config)}."
    raise InputError(f"There is no config key {key!r}: {hint}")
  return node, name


def _listed(config: ConfigDict, prefix: str = "", limit: int = 12) -> str:
  """Names the keys of one group, the first few of many."""
  names = [f"{prefix}.{name}" if prefix else name for name in config.keys()]
  return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _convert(text: str, expected: type, current: Any) -> Any:
  """Reads `text` as a value of type `expected`; raises ValueError, SyntaxError or TypeError if it is none."""
  if expected is bool:
    if text.lower() not in _BOOLEANS:
      raise ValueError(text)
    return _BOOLEANS[text.lower()]
  if expected in (tuple, list):
    return _sequence(text, expected, current)
  if expected is type(None):
    return _literal(text)
  value = expected(text)
  if value != value:  # NaN is not a number anyone means.
    raise ValueError(text)
  return value


def _sequence(text: str, expected: type, current: Any) -> Any:
  nested = _literal(text)
  if isinstance(nested, (tuple, list)) and any(isinstance(part, (tuple, list)) for part in nested):
    return expected(_tuples(part) for part in nested)
  texts = isinstance(nested, (tuple, list)) and nested and all(isinstance(part, str) for part in nested)
  if texts and not (current and not isinstance(current[0], str)):
    return expected(nested)  # quoted: with their spaces and escapes, and never numbers
  inner = text.strip()
  if inner[:1] + inner[-1:] in ("()", "[]"):
    inner = inner[1:-1]
  parts = [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]
  if current:
    return expected(_convert(part, type(current[0]), None) for part in parts)
  return expected(_literal(part) for part in parts)


def _literal(text: str) -> Any:
  """Reads a Python literal, and anything else as a string."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text
