"""Calling a user's reward function: whatever is wrong with its answer is said in one line."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import importlib
import math
from typing import Any

import numpy as np

from qempo_jax.errors import InputError


def load(path: str) -> Callable:
  """Imports a reward function from its dotted path.

  Args:
    path: such as `my_package.rewards.brevity`.

  Returns:
    The function.

  Raises:
    InputError: there is no such module or name, or it is not callable.
  """
  module_name, _, name = path.rpartition(".")
  try:
    function = getattr(importlib.import_module(module_name), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise InputError(f"reward function {path!r} cannot be imported ({error}); give package.module.function") from error
  if not callable(function):
    raise InputError(f"reward function {path!r} is a {type(function).__name__}; it must be callable")
  return function


def scores(
    function: Callable,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
  """The rewards of completions: function(prompts, completions, **columns).

  Args:
    function: the reward function.
    prompts: one a completion.
    completions: texts without special tokens.
    columns: further columns of the data, one value a completion.

  Returns:
    [completions] float32.

  Raises:
    InputError: it raised, or gave another number of scores, or one that is not a finite number.
  """
  name = getattr(function, "__name__", repr(function))
  try:
    values = function(prompts, completions, **columns)
  except Exception as error:  # a user's code: anything can come out of it
    raise InputError(f"reward function {name} raised {type(error).__name__}: {error}; mend it and run again") from error
  try:
    values = list(values)
  except TypeError as error:
    raise InputError(f"reward function {name} returned {type(values).__name__}; it must return a list") from error
  if len(values) != len(completions):
    raise InputError(f"reward function {name} returned {len(values)} scores for {len(completions)} completions")
  for index, value in enumerate(values):
    try:
      finite = math.isfinite(value)
    except TypeError:
      finite = False
    if not finite:
      raise InputError(
          f"reward function {name} returned {value!r} for completion {index} ({completions[index]!r:.80});"
          " every score must be a finite number"
      )
  return np.asarray(values, np.float32)
