"""Estimates of the programs' optima from samples of the reference, before any training.

Every optimum is the reference reweighted, on the path of `dual_newton`,

    pi ∝ q^(1-tau) exp(s r),  so  pi / q ∝ q^(-tau) exp(s r)        s = lambda / (1+mu),  tau = 1 / (1+mu)

with tau = 0 for RLHF and tau = 1 for QEMPO. From n samples y_i of q for each prompt, the self-normalised importance
weights and their estimates are

    w_i     = softmax_i(s r_i - tau log q(y_i))
    E_pi[f] ~ sum_i w_i f_i
    log Z   ~ log mean_i exp(s r_i - tau log q(y_i)),  so  log(pi / q)(y_i) ~ log(n w_i)
    KL      ~ sum_i w_i log(n w_i)                = log n - H(w)
    H(pi)   ~ -sum_i w_i log q(y_i) - KL

This is the program with q replaced by its empirical measure: (s, tau) solves E r = R and KL = K for means over prompts,
with one pair for all prompts, as in `exact`. The entropy does not count strings. log q is known exactly, so unseen
strings count too, as far as the samples represent them.

The weights show only part of the error. Kish's effective sample size, 1 / sum_i w_i^2, is at most n exp(-KL). n samples
never show a KL above log n, and a policy K nats away needs some multiple of exp(K) of them (Chatterjee & Diaconis, "The
sample size required in importance sampling", arXiv 1511.01437). The bias is of order 1 / (effective sample size) for
every prompt, so it does not average out over prompts. Equal weights may also mean that no good response was sampled;
`sampled_evidence` has the diagnostics and intervals.

The programs are those of Pan et al. (arXiv 2602.15894); these estimators are a reconstruction. All functions are pure
and safe under jit, vmap and grad; the checks that raise need concrete values.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import dual_newton
from qempo_jax import feasible
from qempo_jax.dual_newton import PathPoint
from qempo_jax.errors import InputError
from qempo_jax.feasible import InfeasibleError
from qempo_jax.root_finding import increasing_root


class SampledSolution(NamedTuple):
  """An estimated optimum.

  Attributes:
    point: the policy's (tilt s, tau), scalars.
    log_weights: [P, n] logs of the self-normalised weights; each row's exponentials sum to one.
    quality_multiplier: lambda, nats per unit of reward, scalar; for RLHF 1 / beta. inf if the floor is the largest
      reward that any reweighting of the samples reaches.
    kl_multiplier: mu, scalar; inf at tau = 0 for QEMPO-KL, 0 for programs without a KL budget.
    expected_reward: [P] estimates of E_pi[r]; the constraints hold for means over prompts.
    entropy: [P] estimates of H(pi), nats.
    kl: [P] estimates of KL(pi || q), nats, never above log n.
    effective_sample_size: [P], in [1, n].
  """

  point: PathPoint
  log_weights: jax.Array
  quality_multiplier: jax.Array
  kl_multiplier: jax.Array
  expected_reward: jax.Array
  entropy: jax.Array
  kl: jax.Array
  effective_sample_size: jax.Array


def solve_rlhf(rewards: chex.Array, ref_log_probs: chex.Array, *, min_reward: chex.Numeric) -> SampledSolution:
  """Estimated optimum of min KL(pi || q) s.t. E[r] >= R; tau = 0.

  Args:
    rewards: [P, n] or [n] rewards of samples from the reference.
    ref_log_probs: log-probs of those samples under the reference that drew them, nats, same shape: sums over all
      response tokens, EOS included, at the sampling temperature.
    min_reward: floor R of the mean over prompts, scalar.

  Returns:
    The solution; its smallest KL is the estimate of K*(R).

  Raises:
    InfeasibleError: no reweighting of the samples reaches the floor.
    InputError: a value is not finite.
  """
  return _solve(rewards, ref_log_probs, min_reward, jnp.inf, program="rlhf")


def solve_qempo(rewards: chex.Array, ref_log_probs: chex.Array, *, min_reward: chex.Numeric) -> SampledSolution:
  """Estimated optimum of max H(pi) s.t. E[r] >= R; tau = 1.

  The weights are exp(lambda r) / q: responses that are rare under the reference weigh most. Samples tell almost nothing
  about a language model's V^T strings, and the effective sample size shows it. Arguments, returns and errors as in
  `solve_rlhf`.
  """
  return _solve(rewards, ref_log_probs, min_reward, jnp.inf, program="qempo")


def solve_qempo_kl(
  rewards: chex.Array, ref_log_probs: chex.Array, *, min_reward: chex.Numeric, max_kl: chex.Numeric
) -> SampledSolution:
  """Estimated optimum of max H(pi) s.t. E[r] >= R, KL(pi || q) <= K.

  Args:
    rewards: [P, n] or [n], as in `solve_rlhf`.
    ref_log_probs: [P, n] or [n], as in `solve_rlhf`.
    min_reward: floor R of the mean over prompts, scalar.
    max_kl: budget K of the mean over prompts, nats, scalar.

  Returns:
    The solution.

  Raises:
    InfeasibleError: no reweighting of the samples reaches the floor, or none does so within the budget.
    InputError: a value is not finite.
  """
  return _solve(rewards, ref_log_probs, min_reward, max_kl, program="qempo_kl")


def at_weights(rewards: chex.Array, ref_log_probs: chex.Array, point: PathPoint) -> SampledSolution:
  """Estimates for the policy pi ∝ q^(1-tau) exp(s r) at given weights (s, tau).

  Args:
    rewards: [P, n] or [n], as in `solve_rlhf`.
    ref_log_probs: [P, n] or [n], as in `solve_rlhf`.
    point: (s, tau), scalars; (1 / beta, 0) for RLHF.

  Returns:
    The solution; its multipliers are lambda = s / tau and mu = 1 / tau - 1, infinite at tau = 0.

  Raises:
    InputError: a value is not finite.
  """
  rewards, ref_log_probs = _prepare(rewards, ref_log_probs)
  point = PathPoint(*(jnp.asarray(part, rewards.dtype) for part in point))
  return _solution(rewards, ref_log_probs, point, dual_newton.multipliers_at(point))


def log_weights(rewards: jax.Array, ref_log_probs: jax.Array, point: PathPoint) -> jax.Array:
  """log w_i = s r_i - tau log q_i - logsumexp, [P, n]: `dual_newton`'s path for 1/q at 1 - tau."""
  return dual_newton.path_log_probs(rewards, -ref_log_probs, PathPoint(point.tilt, 1 - point.tau))


def effective_sample_size(log_weights: chex.Array) -> jax.Array:
  """1 / sum_i w_i^2 over the last axis (Kish, "Survey Sampling", 1965), in [1, n]."""
  return jnp.exp(-jax.nn.logsumexp(2 * log_weights, axis=-1))


def _solve(
  rewards: chex.Array, ref_log_probs: chex.Array, min_reward: chex.Numeric, max_kl: chex.Numeric, *, program: str
) -> SampledSolution:
  rewards, ref_log_probs = _prepare(rewards, ref_log_probs)
  bounds = [jnp.asarray(bound, rewards.dtype) for bound in (min_reward, max_kl)]
  if not feasible.traced(rewards, ref_log_probs, *bounds):
    _check(rewards, ref_log_probs, *bounds)
  return _solve_jitted(rewards, ref_log_probs, *bounds, program=program)


@functools.partial(jax.jit, static_argnames="program")
def _solve_jitted(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: chex.Numeric, max_kl: chex.Numeric, *, program: str
) -> SampledSolution:
  if program == "qempo_kl":
    point = _point_at_kl(rewards, ref_log_probs, min_reward, max_kl)
    multipliers = dual_newton.multipliers_at(point)
  else:
    point = _point_at_tau(rewards, ref_log_probs, min_reward, {"rlhf": 0.0, "qempo": 1.0}[program])
    multipliers = dual_newton.Multipliers(quality=point.tilt, kl=jnp.zeros_like(point.tilt))
  at_top = min_reward >= jnp.mean(jnp.max(rewards, axis=-1))
  quality = jnp.where(at_top & (point.tilt > 0), jnp.inf, multipliers.quality)
  return _solution(rewards, ref_log_probs, point, multipliers._replace(quality=quality))


def _solution(
  rewards: jax.Array, ref_log_probs: jax.Array, point: PathPoint, multipliers: dual_newton.Multipliers
) -> SampledSolution:
  weights = log_weights(rewards, ref_log_probs, point)
  kl = _kl(weights)
  return SampledSolution(
    point=point,
    log_weights=weights,
    quality_multiplier=multipliers.quality,
    kl_multiplier=multipliers.kl,
    expected_reward=dual_newton.expectation(weights, rewards),
    entropy=-dual_newton.expectation(weights, ref_log_probs) - kl,
    kl=kl,
    effective_sample_size=effective_sample_size(weights),
  )


def _kl(log_weights: jax.Array) -> jax.Array:
  """log n - H(w) over the last axis."""
  return jnp.log(log_weights.shape[-1]) - dual_newton.entropy(log_weights)


def _point_at_tau(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: chex.Numeric, tau: chex.Numeric
) -> PathPoint:
  """Smallest tilt that meets the floor at this tau: that of `dual_newton`, with 1/q and 1 - tau for q and tau."""
  point = dual_newton.point_at_tau(rewards, -ref_log_probs, min_reward, 1 - tau)
  return PathPoint(point.tilt, jnp.asarray(tau, rewards.dtype))


def _point_at_kl(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: chex.Numeric, max_kl: chex.Numeric
) -> PathPoint:
  """Largest tau with a policy at the floor and within the budget: KL increases along it, as on the exact path."""

  def excess(tau: jax.Array) -> jax.Array:
    point = _point_at_tau(rewards, ref_log_probs, min_reward, tau)
    return jnp.mean(_kl(log_weights(rewards, ref_log_probs, point))) - max_kl

  rounding = 8 * jnp.finfo(rewards.dtype).eps * (1 + jnp.abs(max_kl))
  tau = increasing_root(excess, jnp.ones((), rewards.dtype), high=1.0, tolerance=rounding)
  return _point_at_tau(rewards, ref_log_probs, min_reward, tau)


def _prepare(rewards: chex.Array, ref_log_probs: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Both arrays as [P, n] in one floating dtype, checked."""
  dtype = jnp.result_type(rewards, ref_log_probs, jnp.float32)
  rewards, ref_log_probs = (jnp.atleast_2d(jnp.asarray(x, dtype)) for x in (rewards, ref_log_probs))
  chex.assert_rank(rewards, 2)
  chex.assert_equal_shape([rewards, ref_log_probs])
  if not feasible.traced(rewards, ref_log_probs):
    if not (np.isfinite(rewards).all() and np.isfinite(ref_log_probs).all()):
      raise InputError("rewards and ref_log_probs of samples must be finite: score every sample and drop none")
  return rewards, ref_log_probs


def _check(rewards: jax.Array, ref_log_probs: jax.Array, min_reward: jax.Array, max_kl: jax.Array) -> None:
  """Raises InfeasibleError, with the feasible range, if no reweighting of the samples meets the constraints."""
  best, mean = float(jnp.mean(jnp.max(rewards, axis=-1))), float(jnp.mean(rewards))
  slack = float(jnp.finfo(rewards.dtype).eps) ** 0.75
  if not min_reward <= best + slack * max(abs(best), 1e-30):
    raise InfeasibleError(
      f"min_reward {min_reward:.6g} is out of these samples' reach: the reference has {mean:.6g} and the best of each "
      f"prompt's {rewards.shape[1]} samples {best:.6g}; choose a floor of at most {best:.6g}, or draw more samples"
    )
  smallest = float(jnp.mean(_solve_jitted(rewards, ref_log_probs, min_reward, jnp.inf, program="rlhf").kl))
  if not max_kl >= smallest - slack * (1 + smallest):
    raise InfeasibleError(
      f"max_kl {max_kl:.6g} is below {smallest:.6g} nats, the smallest KL at which these samples reach a reward of "
      f"{min_reward:.6g}; choose a larger budget, or a lower floor"
    )
