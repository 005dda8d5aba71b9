"""Names and calls written as text in configs: `length`, `repetition(length=4)`, `my_package.methods.mine(strength=2)`."""

import ast
import importlib
from typing import Any

from qempo_jax import errors
from qempo_jax.errors import InputError


def parse(text: str, what: str) -> tuple[str, tuple[Any, ...] | None, dict[str, Any]]:
  """Parses text to (dotted path, positional arguments or None without brackets, keywords); settings are literals.

  Args:
    text: a name or dotted path, with or without settings in brackets.
    what: the noun of the error message, such as "reward".

  Raises:
    InputError: the text cannot be parsed.
  """
  try:
    node = ast.parse(text.strip(), mode="eval").body
    if not isinstance(node, ast.Call):
      return _dotted(node), None, {}
    arguments = tuple(ast.literal_eval(value) for value in node.args)
    keywords = {item.arg: ast.literal_eval(item.value) for item in node.keywords if item.arg}
    if len(keywords) != len(node.keywords):
      raise ValueError("** is not for configs")
    return _dotted(node.func), arguments, keywords
  except (AttributeError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
    raise InputError(
      f"{what} {text!r} cannot be read; write a name, a dotted path, or either with settings such as name(key=50)"
    ) from error


def load(path: str, what: str) -> Any:
  """The object at a dotted path, package.module.name.

  Raises:
    InputError: the object does not exist, or its module cannot be imported.
  """
  module, _, name = path.rpartition(".")
  remedy = (
    f"give package.module.name: a file {module.partition('.')[0]}.py in the folder you start from, or on PYTHONPATH"
  )
  with errors.user_code(f"{what} {path!r} cannot be imported:", remedy):
    return getattr(importlib.import_module(module), name)


def _dotted(node: ast.AST) -> str:
  if isinstance(node, ast.Attribute):
    return f"{_dotted(node.value)}.{node.attr}"
  if not isinstance(node, ast.Name):
    raise ValueError("neither a name nor a dotted path")
  return node.id
