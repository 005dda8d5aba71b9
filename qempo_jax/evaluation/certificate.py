"""Certificates: verdicts that a measured constraint holds, fails, or is undecided by the samples.

`quality_floors` extends them to floors relative to the reference and to entropy gains.
"""

import math
from typing import Literal
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import bounded
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import studentised

Direction = Literal["at least", "at most"]
Verdict = Literal["MET", "NOT MET", "UNDECIDED"]

NEW_PROMPTS = "new prompts like these, independent of one another"


class Certificate(NamedTuple):
  """Verdict on one constraint, with its evidence.

  Attributes:
    constraint: name, such as "reward" or "kl".
    direction: "at least" for a floor, "at most" for a budget.
    bound: the floor or budget, in the constraint's own units.
    estimate: mean over prompts.
    one_sided_bound: one-sided confidence bound towards `bound`: the lower one for a floor, the upper one for a budget.
    opposite_bound: the other one-sided bound, which decides NOT MET.
    level: confidence level of each one-sided bound at this look.
    verdict: MET iff `one_sided_bound` satisfies the constraint, NOT MET iff `opposite_bound` violates it.
    num_prompts: prompts in all families.
    num_samples: samples of all prompts.
    further_prompts: if UNDECIDED, estimated number of further prompts that would decide it at the same estimate; None
      if decided, or if the estimate is too close to the bound for a meaningful number.
    further_samples: the same in samples, at the same number of samples a prompt.
    overall_level: confidence level over all looks together; equal to `level` for a single look.
    look: index of this look at the data, from 1.
    generalises_to: population of the verdict, such as "new wordings of these sets".
    families: families of prompts behind the bounds, such as "8 wordings"; None: independent prompts.
  """

  constraint: str
  direction: Direction
  bound: float
  estimate: float
  one_sided_bound: float
  opposite_bound: float
  level: float
  verdict: Verdict
  num_prompts: int
  num_samples: int
  further_prompts: int | None
  further_samples: int | None
  overall_level: float | None = None
  look: int = 1
  generalises_to: str = NEW_PROMPTS
  families: str | None = None


def level_of_look(level: float, *, look: int, planned_looks: int | None) -> float:
  """Confidence level of look number `look` such that all looks together keep `level`.

  The error 1 - level is divided evenly over the planned looks. Without a plan look k gets 6 / (pi k)^2 of it, which
  sums to 1. By the union bound this holds for any dependence between looks, with or without new samples, and for any
  stopping rule. Alpha spending: Lan & DeMets, "Discrete Sequential Boundaries for Clinical Trials", 1983.

  Raises:
    InputError: the look is below 1 or beyond the plan.
  """
  if look < 1 or (planned_looks is not None and look > planned_looks):
    raise InputError(f"Look {look} of {planned_looks} planned: count looks from 1, and plan as many as are taken.")
  share = 1 / planned_looks if planned_looks is not None else 6 / (math.pi * look) ** 2
  return 1 - (1 - level) * share


def certify(
  values: np.ndarray,
  *,
  constraint: str,
  bound: float,
  direction: Direction,
  value_range: tuple[float, float] | None = None,
  level: float = 0.95,
  look: int = 1,
  planned_looks: int | None = 1,
  num_draws: int | None = None,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> Certificate:
  """Certifies mean(values) >= bound or <= bound, with one-sided bounds from a bootstrap over prompts or their families.

  The claim generalises to prompts like these, not to these prompts alone. With `clusters` it generalises to new
  families, which is right if prompts share a template or a topic. It holds for these parameters: another training seed
  is another policy. If the range of the values is known, a MET verdict at the bound itself is wrong in at most (1 -
  level) of cases (see `bounded.lower_bound`). With studentised bounds (no range) the error is about that, and larger
  with few prompts and a long tail (see `studentised`). Sampling on until the verdict is MET is one look each time: pass
  the look's index, and the number of planned looks.

  Args:
    values: [prompts, samples] figures of every sample.
    constraint: its name.
    bound: the floor or budget.
    direction: "at least" or "at most".
    value_range: least and greatest possible value, such as (0, 1) for a reward; None: unbounded, such as KL.
    level: confidence level of each one-sided bound, over all looks.
    look: index of this look at growing data, from 1.
    planned_looks: largest number of looks; None: no plan. See `level_of_look`.
    num_draws: least number of bootstrap draws; None: 100,000 for figures with a range, else 10,000. See `tails`.
    seed: seed of the bootstrap.
    clusters: families of the prompts, see `clusters.of`; None: independent prompts.

  Returns:
    Certificate.

  Raises:
    InputError: values are not [prompts, samples], finite and inside `value_range`, or the direction is unknown.
  """
  values = np.asarray(values, float)
  if values.ndim != 2:
    raise InputError(f"A certificate needs values as [prompts, samples], got shape {values.shape}.")
  if direction not in ("at least", "at most"):
    raise InputError(f"Direction is 'at least' or 'at most', not {direction!r}.")
  overall, level = level, level_of_look(level, look=look, planned_looks=planned_looks)
  settings: dict = {"level": level, "seed": seed, "clusters": clusters}
  settings |= {} if num_draws is None else {"num_draws": num_draws}
  check_range(values, value_range, constraint)
  if value_range is None:
    low, high = studentised.lower_bound(values, **settings), studentised.upper_bound(values, **settings)
  else:
    low = bounded.lower_bound(values, lowest=value_range[0], **settings)
    high = bounded.upper_bound(values, highest=value_range[1], **settings)
  estimate = float(values.mean())
  toward, opposite = (low, high) if direction == "at least" else (high, low)
  sign = 1 if direction == "at least" else -1
  verdict, further = "UNDECIDED", None
  if sign * (toward - bound) >= 0:
    verdict = "MET"
  elif sign * (opposite - bound) < 0:
    verdict = "NOT MET"
  else:
    further = _further_prompts(
      len(values), sign * (estimate - bound), sign * (estimate - toward), sign * (opposite - estimate), clusters
    )
  return Certificate(
    constraint=constraint,
    direction=direction,
    bound=float(bound),
    estimate=estimate,
    one_sided_bound=toward,
    opposite_bound=opposite,
    level=level,
    verdict=verdict,
    num_prompts=len(values),
    num_samples=values.size,
    further_prompts=further,
    further_samples=None if further is None else further * values.shape[1],
    overall_level=overall,
    look=look,
    generalises_to=clusters.claim if clusters else NEW_PROMPTS,
    families=clusters.in_words() if clusters else None,
  )


def check_range(values: np.ndarray, value_range: tuple[float, float] | None, name: str) -> None:
  """Raises InputError, with the value, if one is not finite or outside the range; None: no range."""
  values = np.asarray(values, float)
  if not np.all(np.isfinite(values)):
    raise InputError(f"{name} has a value that is not finite: score every sample.")
  if value_range is None:
    return
  least, greatest = value_range
  if not least < greatest:
    raise InputError(f"The range ({least:g}, {greatest:g}) of {name} is empty: give the least and greatest value.")
  outside = values[(values < least) | (values > greatest)]
  if outside.size:
    raise InputError(
      f"{name} has the value {outside[0]:g}, outside its range ({least:g}, {greatest:g}): give the true range, or none "
      "(evaluation.reward_range=() for a reward)."
    )


_NAMES = {"reward": "Reward", "reward over reference": "Reward over the reference's", "kl": "KL to the reference"}


def in_words(certificate: Certificate, digits: int = 3) -> str:
  """The certificate in one or two sentences."""
  c = certificate
  name = _NAMES.get(c.constraint, c.constraint)
  toward, opposite = ("lower", "upper") if c.direction == "at least" else ("upper", "lower")
  bounds = {
    "MET": f"{toward} bound {c.one_sided_bound:.{digits}f}",
    "NOT MET": f"{opposite} bound {c.opposite_bound:.{digits}f}",
    "UNDECIDED": f"bounds {c.one_sided_bound:.{digits}f} and {c.opposite_bound:.{digits}f}",
  }
  text = (
    f"{name} {c.direction} {c.bound:.{digits}g}: {c.verdict}. Estimate {c.estimate:.{digits}f}, one-sided "
    f"{_percent(c.level)} {bounds[c.verdict]}, from {c.num_samples} samples of {c.num_prompts} prompts"
    f"{f' in {c.families}' if c.families else ''}."
  )
  if c.families:
    text += f" It speaks of {c.generalises_to}."
  if c.overall_level is not None and c.level != c.overall_level:
    text += f" Look {c.look}; {_percent(c.overall_level)} over all looks."
  if c.verdict == "UNDECIDED":
    if c.further_prompts is None:
      text += " The estimate is too close to the bound for more samples to be a promise."
    else:
      more = "more prompts in new families" if c.families else "more prompts"
      text += f" About {c.further_prompts} {more} ({c.further_samples} samples) would decide it, if the estimate stays."
  return text


def _further_prompts(num_prompts, margin, width_toward, width_opposite, clusters):
  """Further prompts until the limiting bound reaches `bound`, as its distance shrinks with 1/sqrt(families).

  With two crossed keys the families of both grow in proportion, and the prompts with their product.
  """
  width = width_toward if margin > 0 else width_opposite
  if not math.isfinite(width) or abs(margin) <= width / 10:  # Over 100 times the prompts.
    return None
  counts = clusters.counts if clusters else (num_prompts,)
  grown = math.prod(max(count + 1, math.ceil(count * (width / margin) ** 2)) for count in counts)
  return math.ceil(num_prompts * grown / math.prod(counts)) - num_prompts


def _percent(level):
  """A confidence level in percent, with at most four digits."""
  return f"{100 * level:.4g}%"
