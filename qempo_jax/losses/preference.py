"""Pairwise preference losses of one family: sequence *sums* of log-probs, one pair a call, `jax.vmap` outside.

Under a Bradley-Terry preference model the optimum pi ∝ q^(beta/alpha) exp(r/alpha) inverts to
r = alpha log pi - beta log q + const, and the constant cancels in a pair. Every loss in this file is that inversion for
some (alpha, beta). Other pair losses are in `preference_baselines`, length-normalised ones in `preference_normalised`.
A pairwise loss alone enforces no constraint: its weights are fixed, and it has no quality floor.
"""

import chex
import jax
from jax import Array

from qempo_jax.family import weights_from_multipliers
from qempo_jax.masking import at_least_float32


def preference_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array | float,
  ref_rejected_log_prob: Array | float,
  *,
  alpha: float | Array,
  beta: float | Array,
) -> Array:
  """Soft preference learning: the whole family, with separate entropy and reference weights.

      L = -log sigmoid(alpha (log pi_w - log pi_l) - beta (log q_w - log q_l))

  Source: Slocum et al., "Diverse preference learning", arXiv 2511.08594.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    alpha: entropy weight, reward units per nat.
    beta: reference weight, reward units per nat.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar: pass sums over tokens, and `vmap` over pairs.

  Examples:
    >>> import jax.numpy as jnp
    >>> chosen, rejected, ref_chosen, ref_rejected = jnp.array([-9.0, -10.0, -9.5, -9.5])
    >>> print(f"{preference_loss(chosen, rejected, ref_chosen, ref_rejected, alpha=0.5, beta=0.2):.3f}")
    0.474
  """
  return -jax.nn.log_sigmoid(
    preference_margin(
      chosen_log_prob,
      rejected_log_prob,
      ref_chosen_log_prob,
      ref_rejected_log_prob,
      alpha=alpha,
      beta=beta,
    )
  )


def preference_margin(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array | float,
  ref_rejected_log_prob: Array | float,
  *,
  alpha: float | Array,
  beta: float | Array,
) -> Array:
  """Implicit reward of the chosen response minus that of the rejected one; a metric to log with the loss.

      m = alpha (log pi_w - log pi_l) - beta (log q_w - log q_l)

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    alpha: entropy weight, reward units per nat.
    beta: reference weight, reward units per nat.

  Returns:
    Scalar margin, reward units.

  Raises:
    AssertionError: an input is not a scalar.
  """
  inputs = (chosen_log_prob, rejected_log_prob, ref_chosen_log_prob, ref_rejected_log_prob)
  chex.assert_rank(inputs, 0)
  pi_w, pi_l, q_w, q_l = map(at_least_float32, inputs)
  return alpha * (pi_w - pi_l) - beta * (q_w - q_l)


def qempo_loss(chosen_log_prob: Array, rejected_log_prob: Array, *, alpha: float | Array) -> Array:
  """QEMPO from pairs, without a reference model.

      L = -log sigmoid(alpha (log pi_w - log pi_l)),   alpha = 1 / lambda

  Source: reconstruction from the program of arXiv 2602.15894.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    alpha: entropy weight, the inverse of the quality multiplier; reward units per nat.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  return preference_loss(chosen_log_prob, rejected_log_prob, 0.0, 0.0, alpha=alpha, beta=0.0)


def qempo_kl_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  *,
  quality_multiplier: float | Array,
  kl_multiplier: float | Array,
) -> Array:
  """QEMPO-KL from pairs, parametrised by the multipliers of its two constraints.

      L = -log sigmoid([(1 + mu) (log pi_w - log pi_l) - mu (log q_w - log q_l)] / lambda)

  Source: reconstruction from the program of arXiv 2602.15894; the same loss as arXiv 2511.08594 at
  alpha = (1 + mu) / lambda, beta = mu / lambda.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    quality_multiplier: lambda > 0, nats per reward unit.
    kl_multiplier: mu >= 0, unitless.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  alpha, beta = weights_from_multipliers(quality_multiplier, kl_multiplier)
  return preference_loss(
    chosen_log_prob,
    rejected_log_prob,
    ref_chosen_log_prob,
    ref_rejected_log_prob,
    alpha=alpha,
    beta=beta,
  )


def dpo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  *,
  beta: float | Array,
) -> Array:
  """Direct preference optimisation: the family at alpha = beta.

      L = -log sigmoid(beta [(log pi_w - log q_w) - (log pi_l - log q_l)])

  Source: Rafailov et al., arXiv 2305.18290.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    beta: KL weight, reward units per nat.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  return preference_loss(
    chosen_log_prob,
    rejected_log_prob,
    ref_chosen_log_prob,
    ref_rejected_log_prob,
    alpha=beta,
    beta=beta,
  )


def h_dpo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  *,
  entropy_ratio: float | Array,
  beta: float | Array,
) -> Array:
  """H-DPO: DPO with a scaled entropy weight; the paper's alpha is `entropy_ratio` here.

      L = -log sigmoid(beta [a (log pi_w - log pi_l) - (log q_w - log q_l)]),   alpha = a beta

  Source: Omura, Fujita, Kataoka, "Entropy controllable DPO", arXiv 2411.07595.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    entropy_ratio: a; below 1 sharpens the policy, above 1 flattens it, 1 is DPO.
    beta: reference weight, reward units per nat.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  return preference_loss(
    chosen_log_prob,
    rejected_log_prob,
    ref_chosen_log_prob,
    ref_rejected_log_prob,
    alpha=entropy_ratio * beta,
    beta=beta,
  )
