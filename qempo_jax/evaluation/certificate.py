"""A certificate says whether a measured constraint holds, and admits it when the samples cannot tell.

`quality_floors` gives floors relative to the reference and entropy gains the same treatment.
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
  """The verdict on one constraint and what it rests on.

  Attributes:
    constraint: name, such as "reward" or "kl".
    direction: "at least" for a floor, "at most" for a budget.
    bound: the floor or budget, in the constraint's own units.
    estimate: mean over prompts.
    one_sided_bound: of the estimate, toward the bound: the lower one for a floor, the upper one for a budget.
    opposite_bound: the other one-sided bound, which decides NOT MET.
    level: confidence of each one-sided bound at this look.
    verdict: MET iff `one_sided_bound` is on the right side, NOT MET iff `opposite_bound` is on the wrong side.
    num_prompts: over all families.
    num_samples: over all prompts.
    further_prompts: when UNDECIDED, about how many more prompts would decide it if the estimate stayed; None when
      decided, or when the estimate is too close to the bound for a number to mean anything.
    further_samples: the same in samples, at as many samples a prompt as now.
    overall_level: confidence over all looks together; equal to `level` for a single one.
    look: which look at the data this is, from 1.
    generalises_to: the population that the verdict speaks of, such as "new wordings of these sets".
    families: the families of prompts that the bounds rest on, such as "8 wordings"; None where that is the prompts.
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
  """The confidence that look number `look` may use so that all looks together keep `level`.

  The error 1 - level is spent in parts, even ones over the planned looks, or without a plan 6 / (pi k)^2 of it at look
  k, which sums to 1. By the union bound this holds however the looks depend on one another, new samples added or not,
  and whenever one stops. Alpha spending: Lan & DeMets, "Discrete Sequential Boundaries for Clinical Trials", 1983.

  Raises:
    InputError: if the look is below 1 or beyond the plan.
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
  """Certifies mean(values) >= bound or <= bound with one-sided bounds from a bootstrap over prompts, or their families.

  The claim is about prompts like these, not these prompts alone; with `clusters` it is about new families, which is
  what holds where prompts share a template or a topic. It is about these parameters: another training seed is another
  policy. When the range of the values is known, a MET
  verdict at the bound itself is wrong in at most (1 - level) of cases (see `bounded.lower_bound`); with
  studentised bounds (no range) in about so many, and in more with few prompts and a long tail (see `studentised`).
  Sampling on until the verdict is MET is a look each time: say which look it is, and how many were planned at most.

  Args:
    values: [prompts, samples] figures of every sample.
    constraint: its name.
    bound: the floor or budget.
    direction: "at least" or "at most".
    value_range: the least and greatest possible value, such as (0, 1) for a reward; None where there is none, as for
      the KL divergence.
    level: confidence of each one-sided bound, over all looks.
    look: which look at growing data this is, from 1.
    planned_looks: how many looks there can be at most; None for no plan. See `level_of_look`.
    num_draws: bootstrap draws at least; by default 100,000 of a figure with a range, else 10,000. See `tails`.
    seed: of the bootstrap.
    clusters: families of the prompts, see `clusters.of`; None for independent prompts.

  Returns:
    Certificate.

  Raises:
    InputError: if values are not [prompts, samples], finite and inside `value_range`, or the direction is unknown.
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
  if sign * (toward - bound) >= 0:
    verdict = "MET"
  elif sign * (opposite - bound) < 0:
    verdict = "NOT MET"
  else:
    verdict = "UNDECIDED"
  further = None
  if verdict == "UNDECIDED":
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
  """Raises InputError, naming the value, where one is not finite or outside the range; None bounds nothing."""
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
  """The certificate as one or two sentences."""
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
  """More prompts until the bound in the way reaches `bound`, its distance shrinking with 1/sqrt(families).

  With two crossed keys the families of both grow in proportion, and the prompts with their product.
  """
  width = width_toward if margin > 0 else width_opposite
  if not math.isfinite(width) or abs(margin) <= width / 10:  # over 100 times the prompts
    return None
  counts = clusters.counts if clusters else (num_prompts,)
  grown = math.prod(max(count + 1, math.ceil(count * (width / margin) ** 2)) for count in counts)
  return math.ceil(num_prompts * grown / math.prod(counts)) - num_prompts


def _percent(level):
  """A confidence level in percent, with as many digits as it needs, at most four."""
  return f"{100 * level:.4g}%"
