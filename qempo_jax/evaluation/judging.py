"""Win rates from a pairwise judge, a model or a person, queried in both orders.

A judge that prefers the first of two answers regardless is fair only if every pair is shown both ways. Both orders are
therefore required, and the share of pairs decided by order is reported. A win rate is the judge's taste, length
included: the length-controlled form is a variant, never a replacement.
"""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.errors import cause
from qempo_jax.evaluation import intervals
from qempo_jax.paths import expand_path

Judge = Callable[[str, str, str], float]  # Prompt, first answer, second answer -> preference for the first, 0 to 1.


class Judgements(NamedTuple):
  """Preferences for our answers; axis 0 is the pairs.

  Attributes:
    ours_first: preference for ours, 0 to 1, when it was shown first; 0.5 is a tie.
    ours_second: preference for ours when it was shown second.
    prompts: the prompt of each pair.
    length_differences: length of our answer minus that of the other's, in any one unit.
  """

  ours_first: np.ndarray
  ours_second: np.ndarray
  prompts: tuple[str, ...]
  length_differences: np.ndarray


class WinRate(NamedTuple):
  """A win rate over prompts.

  Attributes:
    rate: win rate with its interval over prompts; 0.5 is equal, ties count a half.
    order_decided: share of pairs with the same preferred position in both orders.
    first_preference: mean preference for the answer shown first, 0.5 without position bias.
    num_pairs: number of pairs.
    num_prompts: number of prompts.
  """

  rate: intervals.Interval
  order_decided: float
  first_preference: float
  num_pairs: int
  num_prompts: int


def ask(judge: Judge, prompts: Sequence[str], ours: Sequence[str], others: Sequence[str]) -> Judgements:
  """Queries a judge about every pair, in both orders.

  Raises:
    InputError: the numbers of texts differ, or the judge returns no number in [0, 1].
  """
  if not len(prompts) == len(ours) == len(others):
    raise InputError(f"Judging needs an answer of each side a prompt: {len(prompts)}, {len(ours)}, {len(others)}.")
  first = [_checked(judge(*texts), "The judge") for texts in zip(prompts, ours, others, strict=True)]
  second = [1 - _checked(judge(*texts), "The judge") for texts in zip(prompts, others, ours, strict=True)]
  lengths = [len(mine) - len(other) for mine, other in zip(ours, others, strict=True)]
  return Judgements(np.array(first), np.array(second), tuple(prompts), np.array(lengths, float))


def read(path: str | os.PathLike) -> Judgements:
  """Reads judgements from JSON Lines.

  A row has `prompt`, `ours` and `other` (the two answers), `ours_first` (true or false: the order shown) and
  `preference` for ours, a number from 0 to 1 or "ours", "tie" or "other". Every pair needs one row of each order.

  Raises:
    InputError: a line is malformed, or a pair lacks an order; the message names it.
  """
  pairs: dict[tuple[str, str, str], dict[bool, float]] = {}
  words = {"ours": 1.0, "tie": 0.5, "other": 0.0}
  path = expand_path(path)
  try:
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"the judgements {path} cannot be read ({error}): name a file of JSON Lines.") from error
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    where = f"{path}, line {number}"
    try:
      row = json.loads(line)
      key, order, preference = (row["prompt"], row["ours"], row["other"]), row["ours_first"], row["preference"]
      if not all(isinstance(text, str) for text in key):
        raise TypeError("prompt, ours and other are texts")
    except (ValueError, RecursionError, KeyError, TypeError) as error:
      raise InputError(
        f"{where}: needs prompt, ours, other, ours_first and preference as JSON ({cause(error)})."
      ) from error
    if not isinstance(order, bool) or order in pairs.setdefault(key, {}):
      raise InputError(f"{where}: ours_first is true or false, and each order of a pair stands once.")
    pairs[key][order] = _checked(
      words.get(preference, preference) if isinstance(preference, str) else preference, where
    )
  for key, orders in pairs.items():
    if len(orders) < 2:
      raise InputError(f"{path}: the pair of prompt {key[0][:60]!r} was judged in one order only: judge the other too.")
  if not pairs:
    raise InputError(f"{path} holds no judgements.")
  return Judgements(
    np.array([orders[True] for orders in pairs.values()]),
    np.array([orders[False] for orders in pairs.values()]),
    tuple(key[0] for key in pairs),
    np.array([len(key[1]) - len(key[2]) for key in pairs], float),
  )


def win_rate(judgements: Judgements, *, level: float = 0.95, num_draws: int = 2000, seed: int = 0) -> WinRate:
  """Mean preference for ours over both orders: per prompt first, then over prompts, with a bootstrap interval.

  Zheng et al., "Judging LLM-as-a-Judge", https://arxiv.org/abs/2306.05685 (order swapping). Range [0, 1].
  """
  scores = (judgements.ours_first + judgements.ours_second) / 2
  _, owners, counts = np.unique(judgements.prompts, return_inverse=True, return_counts=True)
  by_prompt = np.bincount(owners, scores) / counts
  order_decided = (judgements.ours_first - 0.5) * (judgements.ours_second - 0.5) < 0
  return WinRate(
    rate=intervals.mean_interval(by_prompt, level=level, num_draws=num_draws, seed=seed),
    order_decided=float(order_decided.mean()),
    first_preference=float((judgements.ours_first + 1 - judgements.ours_second).mean() / 2),
    num_pairs=len(scores),
    num_prompts=len(by_prompt),
  )


def length_controlled_win_rate(
  judgements: Judgements, *, level: float = 0.95, num_draws: int = 1000, seed: int = 0
) -> intervals.Interval:
  """Length-controlled variant: a logistic model's win rate at equal lengths, with a bootstrap interval over prompts.

    P(ours preferred) = sigmoid(a + b tanh(d / s)),   result sigmoid(a),

  with d the length difference and s its standard deviation over pairs, fitted to the mean preferences by maximum
  likelihood with a ridge of 0.01 on b. After Dubois et al., "Length-Controlled AlpacaEval",
  https://arxiv.org/abs/2404.04475, without its term for the difficulty of instructions, which needs other models'
  results, so numbers differ from theirs. It removes the linear effect of length, not a judge's other habits, and cannot
  tell padding from substance.
  """
  scores = (judgements.ours_first + judgements.ours_second) / 2
  spread = judgements.length_differences.std()
  feature = np.tanh(judgements.length_differences / spread) if spread else np.zeros(len(scores))
  _, owners, counts = np.unique(judgements.prompts, return_inverse=True, return_counts=True)
  num_prompts = len(counts)
  even = 1 / counts[owners]  # Every prompt has the same weight.
  rng = np.random.default_rng(seed)
  drawn = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), num_draws)
  weights = np.concatenate([even[None], even * drawn[:, owners]])
  rates = 1 / (1 + np.exp(-_fit(feature, scores, weights)[:, 0]))
  if num_prompts < 2:
    return intervals.Interval(float(rates[0]), np.nan, np.nan)
  low, high = np.quantile(rates[1:], [(1 - level) / 2, (1 + level) / 2])
  return intervals.Interval(float(rates[0]), float(low), float(high))


def _fit(feature, scores, weights, *, ridge=0.01, steps=50):
  """[fits, 2] intercepts and slopes of weighted logistic fits, all at once by damped Newton steps."""
  design = np.stack([np.ones_like(feature), feature], axis=1)
  penalty = np.diag([1e-6, ridge])  # The tiny one keeps an all-won draw finite.
  beta = np.zeros((len(weights), 2))
  for _ in range(steps):
    mean = 1 / (1 + np.exp(-beta @ design.T))
    gradient = (weights * (scores - mean)) @ design - beta @ penalty
    curvature = np.einsum("fn,ni,nj->fij", weights * mean * (1 - mean), design, design, optimize=True) + penalty
    step = np.linalg.solve(curvature, gradient[..., None])[..., 0].clip(-2, 2)
    beta += step
    if np.abs(step).max() < 1e-10:
      break
  return beta


def _checked(value, where):
  if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
    raise InputError(f"{where}: a preference is a number from 0 to 1, not {value!r}.")
  return float(value)
