"""The dual of QEMPO-KL on an enumerable response set, solved by damped, projected Newton steps.

    g(lambda, mu) = (1+mu) log sum_y exp[(lambda r + mu log q)/(1+mu)] - lambda R + mu K        jointly convex
    grad g        = (E_pi r - R, K - KL(pi || q))                                               (reconstruction)

Near the smallest feasible K both multipliers diverge, like slack^(-1/2), and the Hessian of g degenerates with them.
The same stationarity conditions are therefore solved in bounded coordinates,

    pi ∝ q^(1-tau) exp(s r)        tau = 1/(1+mu) in [0, 1],   s = lambda/(1+mu) >= 0

where tau = 0 is RLHF and tau = 1 is QEMPO. For a given tau the condition E r = R has one root s(tau), projected at 0.
Along it KL increases with tau, d KL/d tau = tau Var(log q | r) (the variance of log q that r does not explain). The
condition KL = K therefore has one root in [0, 1], projected at both ends. A batch of prompts shares (s, tau), with
expectations averaged over prompts.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qempo_jax.family import Multipliers
from qempo_jax.root_finding import increasing_root


class PathPoint(NamedTuple):
  """A policy pi ∝ q^(1-tau) exp(tilt r); tilt in nats per unit of reward."""

  tilt: jax.Array
  tau: jax.Array


def path_log_probs(rewards: jax.Array, ref_log_probs: jax.Array, point: PathPoint) -> jax.Array:
  """Log-probs of the policy at a point of the path, [..., Y]; -inf wherever the reference's are."""
  inside = ref_log_probs > -jnp.inf
  logits = (1 - point.tau) * jnp.where(inside, ref_log_probs, 0) + point.tilt * jnp.where(inside, rewards, 0)
  return jax.nn.log_softmax(jnp.where(inside, logits, -jnp.inf), axis=-1)


def expectation(log_probs: jax.Array, values: jax.Array) -> jax.Array:
  """E_pi[values] over the last axis; responses outside the set contribute 0."""
  return jnp.sum(jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * values, 0), axis=-1)


def entropy(log_probs: jax.Array) -> jax.Array:
  """H(pi) over the last axis, nats."""
  return -expectation(log_probs, jnp.where(log_probs > -jnp.inf, log_probs, 0))


def kl_divergence(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
  """KL(pi || q) over the last axis, nats."""
  inside = log_probs > -jnp.inf
  return expectation(log_probs, jnp.where(inside, log_probs, 0) - jnp.where(inside, ref_log_probs, 0))


def reward_interval(rewards: jax.Array, ref_log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Smallest and largest mean expected reward of any policy, scalars."""
  inside = ref_log_probs > -jnp.inf
  worst = jnp.min(rewards, axis=-1, where=inside, initial=jnp.inf)
  best = jnp.max(rewards, axis=-1, where=inside, initial=-jnp.inf)
  return jnp.mean(worst), jnp.mean(best)


def point_at_tau(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: chex.Numeric, tau: chex.Numeric
) -> PathPoint:
  """Point of the path at tau with the smallest tilt that meets the quality floor.

  tau = 0 solves RLHF and tau = 1 QEMPO. At min_reward >= max r the tilt is so large that only the best responses keep
  any mass.

  Args:
    rewards: [P, Y] rewards.
    ref_log_probs: [P, Y] normalised log-probs of the reference, nats.
    min_reward: floor R of the mean expected reward, scalar.
    tau: scalar in [0, 1].

  Returns:
    A PathPoint of scalars.
  """
  # Rewards are shortfalls from each prompt's best, in units of the largest spread. Shortfalls near the best response
  # keep their digits, and log E[shortfall] is close to linear in the tilt, which suits Newton.
  inside = ref_log_probs > -jnp.inf
  best = jnp.max(rewards, axis=-1, keepdims=True, where=inside, initial=-jnp.inf)
  shortfalls = jnp.where(inside, best - rewards, 0)
  spread = jax.lax.stop_gradient(jnp.max(shortfalls))
  spread = jnp.where(spread > 0, spread, 1)
  shortfalls = shortfalls / spread
  smallest = jnp.finfo(shortfalls.dtype).eps ** 4
  allowed = jnp.maximum((jnp.mean(best) - min_reward) / spread, smallest)

  def excess(tilt: jax.Array) -> jax.Array:
    log_probs = path_log_probs(-shortfalls, ref_log_probs, PathPoint(tilt, jnp.asarray(tau, allowed.dtype)))
    shortfall = jnp.mean(expectation(log_probs, shortfalls))
    return jnp.log(allowed) - jnp.log(jnp.maximum(shortfall, 0.5 * smallest))

  return PathPoint(increasing_root(excess, jnp.ones_like(allowed)) / spread, jnp.asarray(tau, allowed.dtype))


def point_at_kl(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: chex.Numeric, max_kl: chex.Numeric
) -> PathPoint:
  """Optimum of QEMPO-KL: the point of largest tau that meets the floor and the KL budget.

  A budget below the smallest feasible one gives RLHF (tau = 0), the nearest policy.

  Args:
    rewards: [P, Y] rewards.
    ref_log_probs: [P, Y] normalised log-probs of the reference, nats.
    min_reward: floor R of the mean expected reward, scalar.
    max_kl: budget K of the mean KL, nats, scalar.

  Returns:
    A PathPoint of scalars.
  """

  def excess(tau: jax.Array) -> jax.Array:
    log_probs = path_log_probs(rewards, ref_log_probs, point_at_tau(rewards, ref_log_probs, min_reward, tau))
    return jnp.mean(kl_divergence(log_probs, ref_log_probs)) - max_kl

  # The search starts at tau = 1, so that a budget that is slack up to rounding gets no multiplier.
  rounding = 8 * jnp.finfo(rewards.dtype).eps * (1 + jnp.abs(max_kl))
  tau = increasing_root(excess, jnp.ones((), rewards.dtype), high=1.0, tolerance=rounding)
  return point_at_tau(rewards, ref_log_probs, min_reward, tau)


def multipliers_at(point: PathPoint) -> Multipliers:
  """lambda = s / tau and mu = 1/tau - 1; infinite at tau = 0, but a tilt of 0 keeps lambda = 0."""
  flat = point.tilt == 0
  quality = jnp.where(flat, 0, point.tilt / jnp.where(flat, 1, point.tau))
  return Multipliers(quality=quality, kl=1 / point.tau - 1)


def qempo_kl_dual(
  rewards: chex.Array, ref_log_probs: chex.Array, min_reward: chex.Numeric, max_kl: chex.Numeric
) -> Multipliers:
  """Optimal multipliers of QEMPO-KL without checks: pure, safe under jit, vmap and grad.

  Infeasible inputs give limits, never NaN. A floor at or above max r gives a huge quality multiplier; a budget at or
  below the smallest feasible one gives infinite multipliers (RLHF).

  Args:
    rewards: [Y], or [P, Y] for one global pair of multipliers (use `jax.vmap` for one pair a prompt).
    ref_log_probs: normalised log-probs of the reference, nats, same shape.
    min_reward: floor R, scalar, in units of the reward.
    max_kl: budget K, scalar, nats.

  Returns:
    Multipliers of scalars.
  """
  dtype = jnp.result_type(rewards, ref_log_probs, jnp.float32)
  return _qempo_kl_dual(*(jnp.asarray(value, dtype) for value in (rewards, ref_log_probs, min_reward, max_kl)))


@jax.jit
def _qempo_kl_dual(
  rewards: jax.Array, ref_log_probs: jax.Array, min_reward: jax.Array, max_kl: jax.Array
) -> Multipliers:
  chex.assert_rank([rewards, min_reward, max_kl], [{1, 2}, 0, 0])
  chex.assert_equal_shape([rewards, ref_log_probs])
  return multipliers_at(point_at_kl(jnp.atleast_2d(rewards), jnp.atleast_2d(ref_log_probs), min_reward, max_kl))
