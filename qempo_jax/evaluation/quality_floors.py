"""Certificates of floors relative to the reference model, and entropy gains, on the same prompts."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import intervals

Kind = Literal["absolute", "reference quantile", "reference minus"]


def certify_floor(
  rewards: np.ndarray,
  *,
  kind: Kind,
  amount: float,
  reference_rewards: np.ndarray | None = None,
  value_range: tuple[float, float] | None,
  level: float = 0.95,
  **settings,
) -> certificate.Certificate:
  """Certifies a reward floor of one of three kinds.

    absolute             E[r] >= amount reference quantile   E[r] >= the `amount` quantile of the reference's sampled
    rewards. The certificate does not cover
                         the error of that quantile, so sample the reference separately, once
    reference minus      E[r] - E_reference[r] >= -amount, paired by prompt; the error of both sides is covered

  Args:
    rewards: [prompts, samples] of the policy on held-out prompts, new samples.
    kind: one of the above.
    amount: the floor, the quantile in [0, 1], or the distance below the reference.
    reference_rewards: [prompts, samples] of the reference; for "reference minus" the same prompts in the same order.
    value_range: least and greatest possible reward; None: unbounded.
    level: confidence level.
    **settings: as in `certificate.certify`.

  Returns:
    A Certificate named "reward", or "reward over reference" for "reference minus".

  Raises:
    InputError: the reference's rewards are missing or their prompts differ in number, or the kind is unknown.
  """
  settings |= {"direction": "at least", "level": level}
  certificate.check_range(rewards, value_range, "reward")
  if kind == "absolute":
    return certificate.certify(rewards, constraint="reward", bound=amount, value_range=value_range, **settings)
  if kind not in ("reference quantile", "reference minus"):
    raise InputError(f"There is no floor {kind!r}: choose 'absolute', 'reference quantile' or 'reference minus'.")
  if reference_rewards is None:
    raise InputError(f"The floor {kind!r} needs reference_rewards: sample the reference model.")
  if kind == "reference quantile":
    if not 0 <= amount <= 1:
      raise InputError(f"The floor's quantile is {amount}: it must lie in [0, 1].")
    floor = float(np.quantile(reference_rewards, amount))
    return certificate.certify(rewards, constraint="reward", bound=floor, value_range=value_range, **settings)
  differences = _paired(rewards, reference_rewards)
  certificate.check_range(reference_rewards, value_range, "reward of the reference")
  span = None if value_range is None else (value_range[0] - value_range[1], value_range[1] - value_range[0])
  certified = certificate.certify(
    differences[:, None], constraint="reward over reference", bound=0.0 - amount, value_range=span, **settings
  )
  num_samples = np.shape(rewards)[1]
  further = None if certified.further_prompts is None else certified.further_prompts * num_samples
  return certified._replace(num_samples=int(np.size(rewards)), further_samples=further)


def entropy_gains(
  entropy: np.ndarray,
  others: Mapping[str, np.ndarray],
  *,
  level: float = 0.95,
  num_draws: int = 2000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> dict[str, intervals.Interval]:
  """Sequence entropy minus that of each other policy, such as the reference and an RLHF run, in nats.

  Sequence entropy grows with length, so report both lengths with the gain.

  Args:
    entropy: [prompts, samples] sum of next-token entropies along each response.
    others: the same of other policies, on the same prompts in the same order.
    level: confidence level of all intervals together: each is at 1 - (1 - level) / len(others).
    num_draws: number of bootstrap draws.
    seed: seed of the bootstrap.
    clusters: families of the prompts; None: independent prompts.

  Returns:
    By policy the gain, paired by prompt, with its interval.
  """
  each = 1 - (1 - level) / max(1, len(others))
  return {
    name: intervals.paired_difference(entropy, values, level=each, num_draws=num_draws, seed=seed, clusters=clusters)
    for name, values in others.items()
  }


def _paired(values, reference):
  values, reference = np.asarray(values, float), np.asarray(reference, float)
  if values.ndim != 2 or reference.ndim != 2 or len(values) != len(reference):
    raise InputError(
      f"A floor relative to the reference needs [prompts, samples] of the same prompts: {values.shape} and "
      f"{reference.shape}."
    )
  return values.mean(axis=1) - reference.mean(axis=1)
