"""Several reward functions as one: a weighted sum, each normalised in its own way, and floors for those that have one.

    score_k = sum_i w_i n_i(r_ik)

A None of one reward is not 0: where reward i scored others of the group, the response gets their mean; where it scored
none of the group (it is not for that prompt), it is left out there. A response that no reward of the sum scored has
no score itself. Rewards with a floor are also given one by one, as they are, to be held by `constraints`.
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
RESERVED = ("quality", "kl")  # names of constraints that every run has
_MIN_STD = 1e-4


class Term(NamedTuple):
  """One reward of several.

  Attributes:
    name: of its figures and of its floor's multiplier.
    function: (prompts, completions, **columns) -> scores.
    weight: in the sum; 0 leaves it out, for one that has only a floor.
    normalise: "none"; "group" (minus the mean of the group, over its standard deviation); or "running" (minus the
      mean of all scores so far, over theirs).
    floor: least mean of its scores as they are, in their own unit; None for none.
  """

  name: str
  function: Callable
  weight: float = 1.0
  normalise: str = "none"
  floor: float | None = None


class Scores(NamedTuple):
  """What a composition says of a batch.

  Attributes:
    total: [N] the weighted sum; NaN where nothing of it was scored.
    by_name: [N] scores of each reward as they are; NaN where not scored.
  """

  total: np.ndarray
  by_name: dict[str, np.ndarray]


class Composition:
  """A reward function made of others.

  Attributes:
    terms: the rewards.
    unscored: score of a response that no reward of the sum scored; None leaves it without one.
    floors: floor of each reward that has one, by name, in order.
  """

  __name__ = "composition"

  def __init__(self, terms: Sequence[Term], *, unscored: float | None = None):
    """Checks the terms.

    Raises:
      InputError: none, a name twice or reserved, a bad weight or floor, or an unknown normalisation.
    """
    self.terms, self.unscored = tuple(terms), unscored
    _check(self.terms)
    self.floors = {term.name: float(term.floor) for term in self.terms if term.floor is not None}
    self._running = {term.name: _Moments() for term in self.terms if term.normalise == "running"}

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """The weighted sum of each completion, or `unscored`."""
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
      InputError: a function misbehaves, see `checked.scores_or_nan`.
    """
    together = groups.members(prompts, columns)
    total, scored_by_any = np.zeros(len(completions)), np.zeros(len(completions), bool)
    by_name = {}
    for term in self.terms:
      values = checked.scores_or_nan(term.function, prompts, completions, columns).astype(np.float64)
      by_name[term.name] = values.astype(np.float32)
      if term.weight:
        scored_by_any |= ~np.isnan(values)
        total += term.weight * _filled(self._normalised(term, values, together), together)
    return Scores(np.where(scored_by_any, total, np.nan).astype(np.float32), by_name)

  def take_counts(self) -> dict[str, int]:
    """What the rewards counted since the last call, as `name/kind`; of those that count."""
    return {
      f"{term.name}/{kind}": count
      for term in self.terms
      if hasattr(term.function, "take_counts")
      for kind, count in term.function.take_counts().items()
    }

  def to_json(self) -> dict[str, list[float]]:
    """The running means, for a checkpoint."""
    return {name: [m.count, m.mean, m.squares] for name, m in self._running.items()}

  def from_json(self, state: Mapping[str, Sequence[float]]) -> None:
    """Takes up the running means of a checkpoint; raises InputError where they belong to other rewards."""
    if set(state) != set(self._running):
      raise InputError(f"the checkpoint's running rewards are {sorted(state)}, the config's {sorted(self._running)}")
    self._running = {name: _Moments(*values) for name, values in state.items()}

  def _normalised(self, term: Term, values: np.ndarray, together) -> np.ndarray:
    if term.normalise == "none":
      return values
    if term.normalise == "running":
      moments = self._running[term.name]
      moments.add(values[~np.isnan(values)])
      return (values - moments.mean) / max(moments.std, _MIN_STD)
    result = np.full_like(values, np.nan)
    for group in together:
      there = [index for index in group if not np.isnan(values[index])]
      if there:
        result[there] = (values[there] - values[there].mean()) / max(values[there].std(), _MIN_STD)
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


def _filled(values: np.ndarray, together: Sequence[Sequence[int]]) -> np.ndarray:
  """Each NaN replaced by the mean of its group's scored members; 0 where the whole group has none."""
  result = values.copy()
  for group in together:
    there = [index for index in group if not np.isnan(values[index])]
    absent = [index for index in group if np.isnan(values[index])]
    result[absent] = values[there].mean() if there else 0.0
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
      raise InputError(f"{what} is there twice; give each reward a name of its own")
    if term.normalise not in NORMALISATIONS:
      raise InputError(f"{what}: normalisation {term.normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    for key, value in (("weight", term.weight), ("floor", term.floor)):
      number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
      if not number and not (key == "floor" and value is None):
        raise InputError(f"{what}: {key} {value!r} must be a finite number" + " or None" * (key == "floor"))
    if not term.weight and term.floor is None:
      raise InputError(f"{what} has neither a weight nor a floor, so it would do nothing; give it one or remove it")
