"""The optimum that the reference's samples foretell, or the reason why they foretell none.

A forecast is made only where the samples carry it: `qempo_jax.sampled_evidence` says what is judged, the limits below
where it is refused. What is refused gets no number. A forecast is of a program's optimum over all policies; how near a
model comes to it in some number of steps is another matter.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configured import constraints as build_constraints
from experiments.measure import coherence_forecast
from experiments.measure.reference import Measured
from qempo_jax import sampled_duals
from qempo_jax import sampled_evidence
from qempo_jax.errors import InputError
from qempo_jax.evaluation import intervals
from qempo_jax.feasible import InfeasibleError
from qempo_jax.sampled_duals import PathPoint

MIN_EFFECTIVE_SAMPLES = 20  # a prompt, harmonic mean: the bias of KL and entropy is then a few hundredths of a nat
MAX_HIDDEN_SHARE = 0.2  # mean over prompts; 12 best samples of every prompt give it, 3 / (3 + 12)
NUM_DRAWS = 500  # of the bootstrap
LEVEL = 0.95
_FLOORS = 40  # tried, evenly from the reference's reward to the best of n, to find those that can be foretold


class Program(NamedTuple):
  """One program to forecast.

  Attributes:
    name: as in tables.
    solve: (rewards, ref_log_probs) -> SampledSolution; takes another `min_reward` unless the multipliers are fixed.
    max_kl: its KL budget, nats; inf for none.
    configured: True for the config's own program.
  """

  name: str
  solve: Callable
  max_kl: float
  configured: bool


def programs(config) -> list[Program]:
  """The config's own program and its neighbours at the same floor; its own alone where its multipliers are fixed.

  With a coherence constraint the config's own is not among them: `coherence_forecast` says what is known of it.
  """
  floor, budget = (build_constraints.bound(config, name, aim=True) for name in ("quality", "kl"))
  weight, settings = build_constraints.method(config).entropy_weight, build_constraints.settings(config)
  quality, kl = settings["quality"].start, settings["kl"].start
  coherent = coherence_forecast.settings_of(config) is not None
  others = [name for name, s in settings.items() if name not in build_constraints.ALWAYS and s.kind != "coherence"]
  if coherent and (budget is not None or weight != 1):
    others += ["kl" if budget is not None else "coherence"]
  if others:
    raise InputError(
      f"constraint {others[0]!r} is not foretold; leave it out here (its bound none and its multiplier 0)"
    )
  if floor is None:
    if budget is not None:
      raise InputError(
        "constraints.kl.bound without constraints.quality.bound is not foretold; set a floor, or no budget either"
      )
    if weight + kl <= 0:
      raise InputError(
        "neither entropy nor KL has a weight, so no optimum is set; choose a method with one, or raise constraints.kl.start"
      )
    point = PathPoint(quality / (weight + kl), weight / (weight + kl))
    return [Program("as configured", functools.partial(sampled_duals.at_weights, point=point), math.inf, True)]
  if weight not in (0, 1):
    raise InputError(
      f"an entropy weight of {weight} is not foretold; use a method with 0 (RLHF) or 1 (QEMPO, QEMPO-KL)"
    )
  if budget is None and kl and weight:
    raise InputError(
      f"a floor with mu fixed at constraints.kl.start={kl} is not foretold; set constraints.kl.bound, or constraints.kl.start=0"
    )
  rlhf = functools.partial(sampled_duals.solve_rlhf, min_reward=floor)
  qempo = functools.partial(sampled_duals.solve_qempo, min_reward=floor)
  found = [
    Program("RLHF", rlhf, math.inf, weight == 0 and not coherent),
    Program("QEMPO", qempo, math.inf, weight == 1 and budget is None and not coherent),
  ]
  if budget is not None:
    qempo_kl = functools.partial(sampled_duals.solve_qempo_kl, min_reward=floor, max_kl=budget)
    found.insert(1, Program("QEMPO-KL", qempo_kl, budget, weight == 1))
  return found


def forecast(program: Program, found: Measured) -> dict:
  """The samples' forecast for a program, or the reason why there is none.

  Args:
    program: the program.
    found: the reference's samples.

  Returns:
    program, configured, status ("forecast" or "refused") and reason (None or a sentence); effective_sample_size
    (per_prompt, harmonic_mean, overall) and hidden_share where a reweighting of the samples meets the constraints; and,
    for a forecast alone, quality_multiplier, kl_multiplier, reward, entropy and kl, each {mean, low, high}. RLHF's
    quality_multiplier is 1 / beta: in training lambda / mu.
  """
  entry = {"program": program.name, "configured": program.configured, "status": "refused", "reason": None}
  rewards, log_probs = jnp.asarray(found.rewards, jnp.float32), jnp.asarray(found.log_probs, jnp.float32)
  try:
    solution = program.solve(rewards, log_probs)
  except InfeasibleError as error:
    return entry | {"reason": str(error)}
  per_prompt, size, hidden = _evidence(rewards, solution)
  entry |= {
    "effective_sample_size": {
      "per_prompt": np.asarray(per_prompt).tolist(),
      "harmonic_mean": float(size),
      "overall": float(size) * len(rewards),
    },
    "hidden_share": float(hidden),
    "reason": reason_to_refuse(float(size), float(hidden), rewards.shape[1]),
  }
  if entry["reason"]:
    return entry
  draws = sampled_evidence.bootstrap(program.solve, rewards, log_probs, num_draws=NUM_DRAWS, seed=0)
  figures = {
    name if name != "expected_reward" else "reward": _interval(getattr(solution, name), getattr(draws, name))
    for name in draws._fields
  }
  return entry | {"status": "forecast"} | figures


def reason_to_refuse(size: float, hidden: float, samples: int) -> str | None:
  """Says why nothing is foretold, and what to do; None if the samples carry a forecast."""
  if size < MIN_EFFECTIVE_SAMPLES:
    needed = math.ceil(samples * MIN_EFFECTIVE_SAMPLES / size)
    return (
      f"the {samples} samples of a prompt are worth {size:.1f} of the optimum, fewer than {MIN_EFFECTIVE_SAMPLES}; draw"
      f" {needed} a prompt or more (what was never seen can make it many more), or lower the floor or the KL"
    )
  if hidden > MAX_HIDDEN_SHARE:
    return (
      f"good responses too rare to be among {samples} samples could take {hidden:.0%} of the optimum, more than"
      f" {MAX_HIDDEN_SHARE:.0%}: some prompts show too few; draw more samples, or lower the floor"
    )
  return None


def floors_foretold(program: Program, found: Measured) -> tuple[float, float] | None:
  """The range of floors at which these samples foretell the program, below the highest such; None for none.

  A low floor can be refused where a higher one is not: with a fixed KL budget more of it is left to entropy, so that
  the optimum is spread over rarer responses.

  Args:
    program: one with a floor.
    found: the reference's samples.
  """
  rewards, log_probs = jnp.asarray(found.rewards, jnp.float32), jnp.asarray(found.log_probs, jnp.float32)
  floors = np.linspace(found.rewards.mean(), found.rewards.max(axis=1).mean(), _FLOORS)

  def evidence(floor):
    solution = program.solve(rewards, log_probs, min_reward=floor)
    return *_evidence(rewards, solution)[1:], jnp.mean(solution.kl)

  evidence_of_all = jax.jit(lambda floors: jax.lax.map(evidence, floors))
  sizes, hidden, kl = map(np.asarray, evidence_of_all(jnp.asarray(floors, rewards.dtype)))
  trusted = (sizes >= MIN_EFFECTIVE_SAMPLES) & (hidden <= MAX_HIDDEN_SHARE) & (kl <= program.max_kl + 1e-3)
  if not trusted.any():
    return None
  last = int(np.flatnonzero(trusted)[-1])
  gaps = np.flatnonzero(~trusted[:last])
  return float(floors[gaps[-1] + 1 if gaps.size else 0]), float(floors[last])


def best_of(found: Measured) -> list[dict]:
  """Expected best reward of k = 1, 2, 4, ..., n samples of a prompt, each with its interval and KL at most, nats."""
  samples = found.rewards.shape[1]
  sizes = sorted({*(2**power for power in range(samples.bit_length())), samples})
  return [
    {
      "size": size,
      "reward": intervals.mean_interval(np.asarray(sampled_evidence.expected_best_of(found.rewards, size)))._asdict(),
      "kl_at_most": math.log(size) - (size - 1) / size,
    }
    for size in sizes
  ]


def _evidence(rewards, solution):
  """Effective sample sizes, [P]; their harmonic mean; the mean hidden share."""
  sizes = solution.effective_sample_size
  hidden = jnp.mean(sampled_evidence.hidden_share(rewards, solution))
  return sizes, sampled_evidence.harmonic_mean(sizes), hidden


def _interval(estimate, draws) -> dict:
  """The mean over prompts with its percentile interval, whose ends are draws: some may be infinite."""
  low, high = np.quantile(np.asarray(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
  return {"mean": float(np.mean(estimate)), "low": float(low), "high": float(high)}
