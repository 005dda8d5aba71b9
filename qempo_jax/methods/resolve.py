"""Methods from a config's text: a name of this package or a dotted path, with settings."""

from collections.abc import Callable
import dataclasses
import importlib
import inspect
import pkgutil

from qempo_jax import call_text
from qempo_jax import errors
from qempo_jax.errors import InputError
from qempo_jax.methods.method import Method


def table() -> dict[str, Callable[..., Method]]:
  """Functions in this package's files that return a Method, by name."""
  package = importlib.import_module("qempo_jax.methods")
  functions = {}
  for info in pkgutil.iter_modules(package.__path__):
    module = importlib.import_module(f"{package.__name__}.{info.name}")
    for name, function in inspect.getmembers(module, inspect.isfunction):
      if function.__module__ == module.__name__ and function.__annotations__.get("return") is Method:
        functions[name] = function
  functions.pop("resolve", None)
  return functions


def resolve(text: str) -> Method:
  """The method that a text describes; its `name` is the text.

      qempo                         a method by its name
      ucpo(tau=0.5)                 with settings, Python literals
      my_package.methods.mine(x=2)  a function of the user's that returns a Method

  Args:
    text: as above.

  Returns:
    The method.

  Raises:
    InputError: the text cannot be parsed, the method is unknown, or settings are missing, unknown or of the wrong type.
  """
  path, arguments, keywords = call_text.parse(text, "method")
  known = table()
  if "." not in path and path not in known:
    raise InputError(
      f"there is no method {path!r}: choose one of {', '.join(sorted(known))}, or a dotted path to your own"
    )
  function = known.get(path) or call_text.load(path, "method")
  if isinstance(function, Method):
    return dataclasses.replace(function, name=text)
  with errors.user_code(f"method {text!r} cannot be made:", f"its settings: {_settings(function)}"):
    made = function(*(arguments or ()), **keywords)
  if not isinstance(made, Method):
    raise InputError(f"method {text!r} makes a {type(made).__name__}; it must return a qempo_jax.methods.Method")
  return dataclasses.replace(made, name=text)


def _settings(function: Callable[..., Method]) -> str:
  try:
    return f"{function.__name__}{inspect.signature(function).replace(return_annotation=inspect.Signature.empty)}"
  except (AttributeError, TypeError, ValueError):
    return "see its documentation"
