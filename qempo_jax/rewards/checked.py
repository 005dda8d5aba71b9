"""Calls a user's reward function and reports any problem with its result in one line."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set
import inspect
import math
import reprlib
from typing import Any

import numpy as np

from qempo_jax import call_text
from qempo_jax import errors
from qempo_jax.data.examples import OneMessage
from qempo_jax.errors import InputError

_GIVEN = ("prompts", "completions", "completion_ids")
_LARGEST = float(np.finfo(np.float32).max)  # Larger scores would become infinite.


def load(path: str) -> Callable:
  """Imports a reward function from its dotted path.

  Args:
    path: such as `my_package.rewards.brevity`; or `reward_model:FOLDER`, a reward model's folder or workdir.

  Returns:
    The function.

  Raises:
    InputError: the module or name does not exist, or is not callable.
  """
  if path.startswith("reward_model:"):
    from qempo_jax.rewards import reward_model

    return reward_model.load(path.partition(":")[2])
  function = call_text.load(path, "reward function")
  if not callable(function):
    raise InputError(f"reward function {path!r} is a {type(function).__name__}; it must be callable")
  return function


def check_columns(function: Callable, columns: Collection[str]) -> None:
  """Raises InputError where a reward function needs a column that the rows lack; to be called before anything slow.

  Args:
    function: of (prompts, completions, **columns).
    columns: names of the rows' columns, besides the prompt.
  """
  _check_names(columns)
  try:
    parameters = list(inspect.signature(function).parameters.values())
  except (TypeError, ValueError):  # a function of another language shows no signature
    return
  needed = [p.name for p in parameters if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
  lacking = [name for name in needed if name not in (*_GIVEN, *columns)]
  if lacking:
    there = ", ".join(sorted(columns)) or "none but the prompt"
    raise InputError(
      f"reward function {_name(function)} needs the column {lacking[0]!r}, which the rows lack (their columns: {there}): add it to"
      " them, or choose another reward.function"
    )


def scores(
  function: Callable,
  prompts: Sequence[str],
  completions: Sequence[str],
  columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
  """Rewards of completions: function(prompts, completions, **columns).

  Args:
    function: the reward function.
    prompts: one a completion.
    completions: texts without special tokens.
    columns: further columns of the data, one value a completion.

  Returns:
    [completions] float32.

  Raises:
    InputError: the function raised, or returned a wrong number of scores, or a score that is not a finite number.
  """
  values = _called(function, prompts, completions, columns)
  return _as_array(function, values, completions, "every score must be a finite number")


def scores_or_nan(
  function: Callable,
  prompts: Sequence[str],
  completions: Sequence[str],
  columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
  """`scores` that allows None for a completion that could not be scored, and returns NaN for it.

  Raises:
    InputError: as `scores`; a NaN or infinity from the function itself is still an error.
  """
  values = _called(function, prompts, completions, columns)
  scored = [index for index, value in enumerate(values) if value is not None]
  result = np.full(len(values), np.nan, np.float32)
  result[scored] = _as_array(
    function,
    [values[index] for index in scored],
    [completions[index] for index in scored],
    "every score must be a finite number, or None for no score",
  )
  return result


def least_for_unscored(rewards: np.ndarray, least: float = 0.0) -> np.ndarray:
  """Rewards in which each NaN, a completion that could not be judged, is the least one: no mean rises by it.

  Args:
    rewards: any shape, reward units.
    least: the least possible reward; a lower one among the judged takes its place.
  """
  judged = rewards[~np.isnan(rewards)]
  return np.where(np.isnan(rewards), min(least, *judged.tolist()) if judged.size else least, rewards)


def _called(function, prompts, completions, columns) -> list:
  name = _name(function)
  _check_names(columns)
  if not _reads_texts(function):
    prompts, completions = _messages(prompts, completions)
  talk = any(isinstance(completion, list) for completion in completions)
  hint = ' (completions of conversational rows are messages: completion[0]["content"])' * talk
  with errors.user_code(f"reward function {name} raised", f"fix it and run again{hint}"):
    values = function(prompts=prompts, completions=completions, **columns)
    if not isinstance(values, Iterable) or isinstance(values, Mapping | Set | str | bytes):  # no list of scores
      raise InputError(f"reward function {name} returned {type(values).__name__}; it must return a list")
    values = list(values)
  if len(values) != len(completions):
    raise InputError(f"reward function {name} returned {len(values)} scores for {len(completions)} completions")
  return values


def _check_names(columns: Collection[str]) -> None:
  """Raises InputError if a column has the name of an argument that every reward function gets."""
  for name in ("prompts", "completions"):
    if name in columns:
      raise InputError(
        f"the rows have a column {name!r}, the name by which reward functions get all of them: rename it"
      )


def _reads_texts(function: Callable) -> bool:
  """True for this package's own rewards, which take conversations as rows hold them and completions as texts."""
  module = getattr(function, "__module__", None) or type(function).__module__
  return module.partition(".")[0] == "qempo_jax"


def _messages(prompts: Sequence[Any], completions: Sequence[Any]) -> tuple[list, list]:
  """Prompts and completions in TRL's form: lists of messages for conversational rows, texts for others."""
  given = []
  for prompt, completion in zip(prompts, completions, strict=True):
    if isinstance(prompt, OneMessage):
      prompt = [{"role": "user", "content": str(prompt)}]
    elif not isinstance(prompt, str):
      prompt = [dict(message) for message in prompt]
    talk = isinstance(prompt, list) and isinstance(completion, str)
    given.append((prompt, [{"role": "assistant", "content": completion}] if talk else completion))
  return [prompt for prompt, _ in given], [completion for _, completion in given]


def _as_array(function, values, completions, requirement) -> np.ndarray:
  for index, value in enumerate(values):
    try:
      finite = math.isfinite(value) and abs(float(value)) <= _LARGEST
    except Exception:  # Of a type that is no number.
      finite = False
    if not finite:
      raise InputError(
        f"reward function {_name(function)} returned {reprlib.repr(value):.80} for completion {index}"
        f" ({completions[index]!r:.80}); {requirement}"
      )
  return np.asarray([float(value) for value in values], np.float32)


def _name(function) -> str:
  return getattr(function, "__name__", None) or type(function).__name__
