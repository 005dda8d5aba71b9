"""Several reward functions as one: a weighted sum with a normalisation each, and optional floors.

    score_k = sum_i w_i n_i(r_ik)

A None of one reward is not 0. If reward i scored others of the group, the response gets their mean; if it scored none
of the group (it does not apply to that prompt), it is dropped there. A response that no reward of the sum scored has no
score. Rewards with a floor are also returned individually, unnormalised, for `constraints`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import groups

NORMALISATIONS = ("none", "group", "running")
RESERVED = ("quality", "kl")  # Names of constraints that every run has.
_MIN_STD = 1e-4


class Term(NamedTuple):
  """One reward of several.

  Attributes:
    name: name of its figures and of its floor's multiplier.
    function: (prompts, completions, **columns) -> scores.
    weight: weight in the sum; 0: not in the sum, for a reward with a floor alone.
    normalise: "none"; "group" (minus the mean of the group, divided by its standard deviation); or "running" (minus the
      mean of all scores so far, divided by their standard deviation).
    floor: least mean of its unnormalised scores, in their own unit; None: no floor.
  """

  name: str
  function: Callable
  weight: float = 1.0
  normalise: str = "none"
  floor: float | None = None


class Scores(NamedTuple):
  """Scores of a batch.

  Attributes:
    total: [N] the weighted sum; NaN if no term was scored.
    by_name: [N] unnormalised scores of each reward; NaN if not scored.
  """

  total: np.ndarray
  by_name: dict[str, np.ndarray]


class Composition:
  """A reward function made of others.

  Attributes:
    terms: the rewards.
    unscored: score of a response that no reward of the sum scored; None: no score.
    floors: floor of each reward that has one, by name, in order.
  """

  __name__ = "composition"

  def __init__(self, terms: Sequence[Term], *, unscored: float | None = None):
    """Checks the terms.

    Raises:
      InputError: there is no term, a name is repeated or reserved, or a weight, floor or normalisation is invalid.
    """
    self.terms, self.unscored = tuple(terms), unscored
    _check(self.terms)
    self.floors = {term.name: float(term.floor) for term in self.terms if term.floor is not None}
    self._running = {term.name: _Moments() for term in self.terms if term.normalise == "running"}

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """Weighted sum of each completion, or `unscored`."""
    total = self.scores(prompts, completions, columns).total
    return [self.unscored if np.isnan(value) else float(value) for value in total]

  def scores(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> Scores:
    """Calls every reward once.

    Args:
      prompts: one a completion.
      completions: texts or messages.
      columns: further columns.

    Returns:
      Scores.

    Raises:
      InputError: a function's result is invalid, see `checked.scores_or_nan`.
    """
    all_groups = groups.members(prompts, columns)
    total, scored_by_any = np.zeros(len(completions)), np.zeros(len(completions), bool)
    by_name = {}
    for term in self.terms:
      values = checked.scores_or_nan(term.function, prompts, completions, columns).astype(np.float64)
      by_name[term.name] = values.astype(np.float32)
      if term.weight:
        scored_by_any |= ~np.isnan(values)
        total += term.weight * _filled(self._normalised(term, values, all_groups), all_groups)
    return Scores(np.where(scored_by_any, total, np.nan).astype(np.float32), by_name)

  def take_counts(self) -> dict[str, int]:
    """Counts of the rewards that have them since the last call, as `name/kind`."""
    return {
      f"{term.name}/{kind}": count
      for term in self.terms
      if hasattr(term.function, "take_counts")
      for kind, count in term.function.take_counts().items()
    }

  def to_json(self) -> dict[str, list[float]]:
    """The running moments, for a checkpoint."""
    return {name: [m.count, m.mean, m.squares] for name, m in self._running.items()}

  def from_json(self, state: Mapping[str, Sequence[float]]) -> None:
    """Restores the running moments of a checkpoint; raises InputError if they belong to other rewards."""
    if set(state) != set(self._running):
      raise InputError(f"the checkpoint's running rewards are {sorted(state)}, the config's {sorted(self._running)}")
    self._running = {name: _Moments(*values) for name, values in state.items()}

  def _normalised(self, term: Term, values: np.ndarray, all_groups) -> np.ndarray:
    if term.normalise == "none":
      return values
    if term.normalise == "running":
      moments = self._running[term.name]
      moments.add(values[~np.isnan(values)])
      return (values - moments.mean) / max(moments.std, _MIN_STD)
    result = np.full_like(values, np.nan)
    for group in all_groups:
      scored = [index for index in group if not np.isnan(values[index])]
      if scored:
        result[scored] = (values[scored] - values[scored].mean()) / max(values[scored].std(), _MIN_STD)
    return result


class _Moments:
  """Count, mean and sum of squared deviations of all scores so far (Chan et al.'s parallel update)."""

  def __init__(self, count: float = 0.0, mean: float = 0.0, squares: float = 0.0):
    self.count, self.mean, self.squares = count, mean, squares

  @property
  def std(self) -> float:
    return math.sqrt(self.squares / self.count) if self.count else 0.0

  def add(self, values: np.ndarray) -> None:
    if not values.size:
      return
    count, shift = self.count + values.size, float(values.mean()) - self.mean
    self.squares += float(((values - values.mean()) ** 2).sum()) + shift**2 * self.count * values.size / count
    self.mean += shift * values.size / count
    self.count = count


def _filled(values: np.ndarray, all_groups: Sequence[Sequence[int]]) -> np.ndarray:
  """Replaces each NaN by the mean of its group's scored members, or by 0 if the group has none."""
  result = values.copy()
  for group in all_groups:
    scored = [index for index in group if not np.isnan(values[index])]
    unscored = [index for index in group if np.isnan(values[index])]
    result[unscored] = values[scored].mean() if scored else 0.0
  return result


def _check(terms: Sequence[Term]) -> None:
  names = [term.name for term in terms]
  if not names:
    raise InputError("a composition needs at least one reward")
  for term in terms:
    what = f"reward {term.name!r}"
    if not isinstance(term.name, str) or not term.name.isidentifier() or term.name in RESERVED:
      raise InputError(f"{what}: its name must be a plain word other than {', '.join(RESERVED)}")
    if names.count(term.name) > 1:
      raise InputError(f"{what} is named twice; give each reward a name of its own")
    if term.normalise not in NORMALISATIONS:
      raise InputError(f"{what}: normalisation {term.normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    for key, value in (("weight", term.weight), ("floor", term.floor)):
      number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
      if not number and not (key == "floor" and value is None):
        raise InputError(f"{what}: {key} {value!r} must be a finite number" + " or None" * (key == "floor"))
    if not term.weight and term.floor is None:
      raise InputError(f"{what} has neither a weight nor a floor, so it has no effect; give it one or remove it")
