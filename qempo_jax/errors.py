"""The exception that programs report as one line with exit code 2, and what turns other failures into it."""

from collections.abc import Iterator
import contextlib


class InputError(ValueError):
  """Invalid user input; the message names it and the remedy, in one line."""


def cause(error: BaseException) -> str:
  """Type and first line of an exception, at most 300 characters; the type alone if its text cannot be made."""
  name = type(error).__name__
  try:
    lines = str(error).strip().splitlines()
  except Exception:  # The exception's own __str__ raises.
    lines = []
  return f"{name}: {lines[0][:300]}" if lines else name


@contextlib.contextmanager
def user_code(what: str, remedy: str) -> Iterator[None]:
  """Raises InputError for anything that code of the user raises, sys.exit included; InputError and Ctrl-C pass.

  Args:
    what: subject and verb, such as "reward function f raised".
    remedy: advice to the user.
  """
  try:
    yield
  except (InputError, KeyboardInterrupt):
    raise
  except BaseException as error:
    raise InputError(f"{what} {cause(error)}; {remedy}") from error
