"""Pairwise preference losses outside the family, for comparison; one pair a call, `jax.vmap` outside."""

import jax
from jax import Array

from qempo_jax.losses.preference import preference_margin
from qempo_jax.losses.preference import qempo_loss
from qempo_jax.losses.unpaired import nll_anchor


def smoothed_dpo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  *,
  beta: float | Array,
  label_smoothing: float | Array,
) -> Array:
  """Conservative DPO: a share e of the labels is assumed to be flipped.

      L = -(1 - e) log sigmoid(m) - e log sigmoid(-m),   m = beta [(log pi_w - log q_w) - (log pi_l - log q_l)]

  The margin m is bounded: the minimum is at m = log((1 - e) / e).

  Source: E. Mitchell, "A note on DPO with noisy preferences" (2023).

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    beta: KL weight, reward units per nat.
    label_smoothing: share e of flipped labels, in [0, 1/2).

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  m = preference_margin(
    chosen_log_prob,
    rejected_log_prob,
    ref_chosen_log_prob,
    ref_rejected_log_prob,
    alpha=beta,
    beta=beta,
  )
  e = label_smoothing
  return -(1 - e) * jax.nn.log_sigmoid(m) - e * jax.nn.log_sigmoid(-m)


def robust_dpo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  *,
  beta: float | Array,
  label_smoothing: float | Array,
) -> Array:
  """Robust DPO: an unbiased estimate of the clean loss when a share e of the labels is flipped.

      L = [-(1 - e) log sigmoid(m) + e log sigmoid(-m)] / (1 - 2 e),
      m = beta [(log pi_w - log q_w) - (log pi_l - log q_l)]

  Source: Chowdhury, Kini, Natarajan, "Provably robust DPO", arXiv 2403.00409.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    beta: KL weight, reward units per nat.
    label_smoothing: share e of flipped labels, in [0, 1/2).

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  m = preference_margin(
    chosen_log_prob,
    rejected_log_prob,
    ref_chosen_log_prob,
    ref_rejected_log_prob,
    alpha=beta,
    beta=beta,
  )
  e = label_smoothing
  return (-(1 - e) * jax.nn.log_sigmoid(m) + e * jax.nn.log_sigmoid(-m)) / (1 - 2 * e)


def ipo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  *,
  tau: float | Array,
) -> Array:
  """Identity preference optimisation on sequence sums, as published.

      L = ([(log pi_w - log q_w) - (log pi_l - log q_l)] - 1 / (2 tau))^2

  Source: Azar et al., arXiv 2310.12036.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    tau: KL weight, per nat.

  Returns:
    Scalar loss, nats squared.

  Raises:
    AssertionError: an input is not a scalar.
  """
  h = preference_margin(
    chosen_log_prob,
    rejected_log_prob,
    ref_chosen_log_prob,
    ref_rejected_log_prob,
    alpha=1.0,
    beta=1.0,
  )
  return (h - 1 / (2 * tau)) ** 2


def cpo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  *,
  beta: float | Array,
  nll_weight: float | Array,
) -> Array:
  """Contrastive preference optimisation: `qempo_loss` plus a likelihood term of the chosen response.

      L = -log sigmoid(beta (log pi_w - log pi_l)) - nll_weight log pi_w

  At nll_weight = 0 it is QEMPO's loss with alpha = beta.

  Source: Xu et al., arXiv 2401.08417.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    beta: entropy weight (alpha of the family), reward units per nat.
    nll_weight: weight of the likelihood term, per nat; divide it by the chosen length for a mean over tokens.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  return qempo_loss(chosen_log_prob, rejected_log_prob, alpha=beta) + nll_anchor(chosen_log_prob, weight=nll_weight)
