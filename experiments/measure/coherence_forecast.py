"""A forecast of QEMPO-C's optimum from the reference's samples: an upper bound of lambda, and where to start it.

Each acceptable response counts once in the optimum's partition function, at any probability. Those seen are a
lower bound of how many there are, so lambda at the optimum is at most what they give. The rest, sum_{not A} q^nu, is
estimated by the samples. With graded rewards it is a forecast and no strict bound: responses not seen may be worth less.
"""

import jax.numpy as jnp
import numpy as np

from experiments.configured import constraints as build_constraints
from experiments.measure.reference import Measured
from qempo_jax import exact
from qempo_jax.coherent import log_base_coherent
from qempo_jax.errors import InputError
from qempo_jax.feasible import InfeasibleError

# Nats. lambda (max r - E[r]) above it leaves entropy no say among acceptable responses: see `batches.groups`.
LARGEST_START = 2.0


def settings_of(config):
  """The settings of the config's coherence constraint; None if it has none.

  Raises:
    InputError: the constraint is one that is not foretold.
  """
  found = {name: s for name, s in build_constraints.settings(config).items() if s.kind == "coherence"}
  if not found:
    return None
  (name, settings), *others = found.items()
  settings = build_constraints.with_threshold(config, name, settings)
  if others or settings.bound is not None or settings.quantile is not None or settings.reward != "reward":
    raise InputError(
      f"constraints.{name} is foretold only with a fixed nu and a threshold of the main reward: set its bound and its"
      ' quantile to none, its reward to "reward", and leave one such constraint'
    )
  if build_constraints.bound(config, "quality") is None:
    raise InputError("a coherence constraint without constraints.quality.bound is not foretold; set a floor")
  return settings


def forecast(settings, found: Measured, *, aim: float, start: float) -> dict:
  """The bound of lambda at the floor aimed at.

  Args:
    settings: of the coherence constraint; its start is nu.
    found: samples of the reference.
    aim: the floor aimed at, the mean over prompts.
    start: the configured first value of lambda.

  Returns:
    status ("bound" or "refused") and reason (None or a sentence), threshold, nu, acceptable_seen: distinct acceptable
    responses of each prompt, start; and for a bound quality_multiplier_at_most and recommended_start.
  """
  acceptable = found.rewards >= settings.threshold
  first = np.stack([_first(row) for row in found.responses])
  log_base = np.asarray(
    log_base_coherent(
      found.rewards, found.log_probs, threshold=settings.threshold, nu=settings.start, width=settings.width
    )
  )
  sampled = log_base - found.log_probs - np.log(found.rewards.shape[1])
  log_base = np.where(acceptable, np.where(first, log_base, -np.inf), sampled)
  entry = {
    "status": "refused",
    "reason": None,
    "threshold": float(settings.threshold),
    "nu": float(settings.start),
    "acceptable_seen": np.sum(acceptable & first, axis=1).tolist(),
    "start": start,
  }
  try:
    solution = exact.solve_base_measure(found.rewards, jnp.asarray(log_base, jnp.float32), min_reward=aim)
  except InfeasibleError as error:
    return entry | {"reason": str(error)}
  bound = float(solution.quality_multiplier)
  return entry | {
    "status": "bound",
    "quality_multiplier_at_most": bound,
    "recommended_start": min(LARGEST_START, np.floor(100 * bound) / 100),
  }


def line(entry: dict, aim: float) -> str:
  """The forecast in one sentence for the user."""
  if entry["reason"]:
    return f"No forecast of QEMPO-C: {entry['reason']}."
  bound, start, better = (entry[name] for name in ("quality_multiplier_at_most", "start", "recommended_start"))
  seen = np.array(entry["acceptable_seen"])
  advice = "lies below" if start <= better else f"lies above: set it to {f'{better:.3g} or less' if better > 0 else 0}"
  return (
    f"QEMPO-C (this config): {seen.mean():.1f} different acceptable responses a prompt were seen ({seen.min()} at least), so"
    f" at its optimum for the floor aimed at, {aim:g}, lambda is at most {bound:.3g}; constraints.quality.start={start:g}"
    f" {advice} (the controller raises it while the floor is missed)."
  )


def _first(responses: np.ndarray) -> np.ndarray:
  """True at the first of each group of equal responses."""
  found = np.zeros(len(responses), bool)
  found[np.unique(responses, return_index=True)[1]] = True
  return found
