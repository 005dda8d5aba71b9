"""Known mistakes in preference losses, each with the gradient it follows in expectation."""

import functools

import jax
import numpy as np

from qempo_jax import losses
from qempo_jax.testing.expectation import Pair
from qempo_jax.testing.expectation import pair_moments
from qempo_jax.testing.mistakes import NAN
from qempo_jax.testing.mistakes import NO_GRADIENT
from qempo_jax.testing.problems import Problem


def explain_pairs(
  mean_gradient: np.ndarray, problem: Problem, *, alpha: float, beta: float, tolerance: float = 1e-3
) -> tuple[str, ...]:
  """Name of the mistake whose gradient this is a positive multiple of; empty if there is none.

  Args:
    mean_gradient: [points * D] minus the expected gradient at the points of the problem.
    problem: the problem of the check.
    alpha: entropy weight of J.
    beta: reference weight of J.
    tolerance: largest distance of a fit, relative to the gradient.
  """
  mean_gradient = np.asarray(mean_gradient, np.float64)
  if not np.isfinite(mean_gradient).all():
    return (NAN,)
  norm = np.linalg.norm(mean_gradient)
  if norm == 0:
    return (NO_GRADIENT,)
  for name, gradient in _signatures(problem, alpha, beta).items():
    scale = max(mean_gradient @ gradient / max(gradient @ gradient, 1e-300), 0.0)
    if np.linalg.norm(mean_gradient - scale * gradient) < tolerance * norm:
      return (name,)
  return ()


@functools.lru_cache(maxsize=4)
def _signatures(problem: Problem, alpha: float, beta: float) -> dict[str, np.ndarray]:
  right = functools.partial(losses.preference_loss, alpha=alpha, beta=beta)

  def per_token_policy(pair: Pair) -> jax.Array:
    chosen = pair.chosen_log_prob / pair.chosen_length
    rejected = pair.rejected_log_prob / pair.rejected_length
    return right(chosen, rejected, *pair[2:4])

  wrong = {
    "length-normalised pair loss: log Z no longer cancels": lambda pair: losses.length_normalised_preference_loss(
      *pair, alpha=alpha, beta=beta
    ),
    "length-normalised pair loss, policy's log-probs only": per_token_policy,
    "chosen and rejected exchanged": lambda pair: right(*(pair[i] for i in (1, 0, 3, 2))),
    "the reference is left out": lambda pair: losses.preference_loss(*pair[:4], alpha=alpha, beta=0.0),
    "the reference enters with the wrong sign": lambda pair: losses.preference_loss(*pair[:4], alpha=alpha, beta=-beta),
    "alpha taken for beta (DPO)": lambda pair: losses.preference_loss(*pair[:4], alpha=alpha, beta=alpha),
    "alpha and beta exchanged": lambda pair: losses.preference_loss(*pair[:4], alpha=beta, beta=alpha),
  }
  moments = pair_moments(list(wrong.values()), problem)
  gradients = np.stack([moments(params).mean for params in problem.params], axis=1)
  return dict(zip(wrong, gradients.reshape(len(wrong), -1), strict=True))
