"""One family of objectives in two coordinate systems: weights (alpha, beta) or multipliers (quality, kl).

    J(pi) = E_pi[r] + alpha H(pi) + beta E_pi[log q]          weights
    J(pi) = E_pi[lambda r - (1 + mu) log pi + mu log q]       multipliers (lambda, mu), the first times lambda

with reward r, reference policy q and entropy H in nats. The optimum is pi ∝ q^(beta/alpha) exp(r/alpha), which is
pi ∝ q^(mu/(1+mu)) exp(lambda r/(1+mu)). QEMPO is beta = mu = 0; RLHF with a KL penalty is the boundary
alpha = beta, where both multipliers are infinite; QEMPO-KL lies between; SPL is any (alpha, beta).

The programs are those of "Quality-constrained Entropy Maximization Policy Optimization for LLM Diversity" (Pan et
al., arXiv 2602.15894) and "Diverse Preference Learning for Capabilities and Alignment" (SPL; Slocum et al., arXiv
2511.08594); the closed forms are a reconstruction from those programs.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Weights(NamedTuple):
  """Weights of J: alpha of the entropy, beta of the reference's log-prob; in units of reward per nat."""

  alpha: jax.Array
  beta: jax.Array


class Multipliers(NamedTuple):
  """Lagrange multipliers: quality in nats per unit of reward, kl unitless."""

  quality: jax.Array
  kl: jax.Array


def weights_from_multipliers(quality: chex.Numeric, kl: chex.Numeric) -> Weights:
  """Weights that correspond to given multipliers.

      alpha = (1 + mu) / lambda          beta = mu / lambda

  Args:
    quality: lambda >= 0, any shape; at 0 alpha is infinite (use `multiplier_target_log_probs`).
    kl: mu >= 0, any shape.

  Returns:
    Weights of the broadcast shape.

  Examples:
    >>> weights = weights_from_multipliers(4.0, 1.0)
    >>> float(weights.alpha), float(weights.beta)
    (0.5, 0.25)
  """
  quality, kl = jnp.asarray(quality), jnp.asarray(kl)
  return Weights(alpha=(1 + kl) / quality, beta=_ratio(kl, quality))


def multipliers_from_weights(alpha: chex.Numeric, beta: chex.Numeric) -> Multipliers:
  """Multipliers that correspond to given weights.

      lambda = 1 / (alpha - beta)          mu = beta / (alpha - beta)

  Args:
    alpha: entropy weight, any shape.
    beta: reference weight, any shape, with 0 <= beta < alpha. At alpha = beta (RLHF) the multipliers are infinite. For
      beta > alpha they are negative: such an objective has no quality floor and KL budget.

  Returns:
    Multipliers of the broadcast shape.
  """
  alpha, beta = jnp.asarray(alpha), jnp.asarray(beta)
  return Multipliers(quality=1 / (alpha - beta), kl=_ratio(beta, alpha - beta))


def target_log_probs(
  rewards: chex.Array, ref_log_probs: chex.Array, *, alpha: chex.Numeric, beta: chex.Numeric
) -> jax.Array:
  """Optimum of J over the last axis.

      log pi = (r + beta log q) / alpha - log Z

  Source: Slocum et al. (arXiv 2511.08594); for alpha = beta "Direct Preference Optimization" (Rafailov et al., arXiv
  2305.18290).

  Args:
    rewards: [..., Y] rewards of the responses.
    ref_log_probs: [..., Y] log-probs of the responses under the reference, nats. A response with -inf is outside the
      response set, for every beta; it marks padding, and KL(pi || q) stays finite.
    alpha: entropy weight > 0; scalar or [...], one a prompt.
    beta: reference weight; scalar or [...].

  Returns:
    [..., Y] log-probs, nats, each row normalised; -inf outside the response set.
  """
  alpha, beta = _over_responses(alpha), _over_responses(beta)
  return _normalised(rewards, ref_log_probs, reward_power=1 / alpha, ref_power=beta / alpha)


def multiplier_target_log_probs(
  rewards: chex.Array, ref_log_probs: chex.Array, *, quality: chex.Numeric, kl: chex.Numeric
) -> jax.Array:
  """Optimum of the multiplier form over the last axis, also defined at lambda = 0.

      log pi = (lambda r + mu log q) / (1 + mu) - log Z          (reconstruction)

  Args:
    rewards: [..., Y] rewards of the responses.
    ref_log_probs: [..., Y] log-probs under the reference, nats; -inf as in `target_log_probs`.
    quality: lambda >= 0; scalar or [...].
    kl: mu >= 0; scalar or [...].

  Returns:
    [..., Y] log-probs, nats, each row normalised.
  """
  quality, kl = _over_responses(quality), _over_responses(kl)
  return _normalised(rewards, ref_log_probs, reward_power=quality / (1 + kl), ref_power=kl / (1 + kl))


def _normalised(
  rewards: chex.Array, ref_log_probs: chex.Array, *, reward_power: jax.Array, ref_power: jax.Array
) -> jax.Array:
  rewards, ref_log_probs = jnp.asarray(rewards), jnp.asarray(ref_log_probs)
  chex.assert_equal_shape([rewards, ref_log_probs])
  inside = ref_log_probs > -jnp.inf
  logits = reward_power * jnp.where(inside, rewards, 0) + ref_power * jnp.where(inside, ref_log_probs, 0)
  return jax.nn.log_softmax(jnp.where(inside, logits, -jnp.inf), axis=-1)


def _over_responses(weight: chex.Numeric) -> jax.Array:
  """Adds the axis of the responses to a weight per prompt."""
  weight = jnp.asarray(weight)
  return weight[..., None] if weight.ndim else weight


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """numerator / denominator, with 0 / 0 = 0 and a safe gradient."""
  both_zero = (numerator == 0) & (denominator == 0)
  return jnp.where(both_zero, 0.0, numerator / jnp.where(both_zero, 1.0, denominator))
