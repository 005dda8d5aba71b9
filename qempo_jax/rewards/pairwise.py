"""Pairwise preference rewards, from any reward function that scores single responses.

    P(y beats y') = sigmoid((s(y) - s(y')) / temperature)

Source: R. A. Bradley, M. E. Terry, "Rank analysis of incomplete block designs" (1952).
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import groups
from qempo_jax.rewards import texts


class PairwiseReward:
  """Probability of beating another member of the group, on average, or of beating a reference response.

  Both lie in [0, 1] for any unit of the scores, so a floor has the same meaning for every scorer: 0.5 is as good as the
  opponent. The mean over a group is always 0.5 against the group, so only a reference can have a floor.
  """

  def __init__(
    self,
    scorer: Callable | str,
    *,
    against: str = "group",
    reference: str = "reference",
    temperature: float = 1.0,
  ):
    """Stores the settings.

    Args:
      scorer: a reward function, such as a reward model's, or its dotted path.
      against: "group", or "reference" for the response in a column.
      reference: that column's name.
      temperature: unit of the scores.

    Raises:
      InputError: `against` is unknown, or the temperature is not positive.
    """
    if against not in ("group", "reference"):
      raise InputError(f"pairwise against={against!r}: use 'group' or 'reference'")
    if not temperature > 0:
      raise InputError(f"pairwise temperature={temperature}: it must be positive")
    self._scorer = checked.load(scorer) if isinstance(scorer, str) else scorer
    self._against, self._reference, self._temperature = against, reference, temperature
    self.__name__ = f"pairwise({getattr(self._scorer, '__name__', 'scorer')})"

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    """One probability a completion; None if one of the two has no score."""
    if self._against == "group":
      scores = self._score(prompts, completions, columns)
      return groups.score_groups(self._win_rates, prompts, scores, columns)
    references = texts.column(self._reference, columns, completions)
    scores = self._score(
      [*prompts, *prompts],
      [*completions, *references],
      {name: [*values, *values] for name, values in columns.items() if name != "completion_ids"},
    )
    pairs = zip(scores[: len(completions)], scores[len(completions) :])
    return [None if None in pair else float(self._beats(*pair)) for pair in pairs]

  def _score(self, prompts, completions, columns) -> list[float | None]:
    values = checked.scores_or_nan(self._scorer, prompts, completions, columns)
    return [None if np.isnan(value) else float(value) for value in values]

  def _win_rates(self, prompt: Any, scores: list[float]) -> np.ndarray:
    del prompt
    if len(scores) == 1:
      return np.array([0.5])
    scores = np.asarray(scores, float)
    return groups.mean_over_others(self._beats(scores[:, None], scores[None]))

  def _beats(self, score, other):
    return 0.5 * (1 + np.tanh(0.5 * (score - other) / self._temperature))
