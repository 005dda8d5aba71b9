"""Length-normalised preference losses, named as such.

Dividing a log-prob by the response's length breaks the inversion of the optimum. The two responses have different
divisors, so log Z no longer cancels, and the minimiser is not pi ∝ q^(beta/alpha) exp(r/alpha). These losses are
baselines for comparison.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.losses.preference import preference_loss
from qempo_jax.losses.preference_baselines import ipo_loss
from qempo_jax.masking import at_least_float32


def length_normalised_preference_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  chosen_length: Array,
  rejected_length: Array,
  *,
  alpha: float | Array,
  beta: float | Array,
) -> Array:
  """`preference_loss` on log-probs per token: length-normalised QEMPO (beta = 0), DPO (alpha = beta), SPL.

      L = -log sigmoid(alpha (log pi_w / |w| - log pi_l / |l|) - beta (log q_w / |w| - log q_l / |l|))

  Source: Slocum et al., arXiv 2511.08594, and Meng et al., arXiv 2405.14734, for the normalisation.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    chosen_length: [] tokens of the preferred response, EOS included.
    rejected_length: [] tokens of the other response, EOS included.
    alpha: entropy weight, reward units per (nat per token).
    beta: reference weight, reward units per (nat per token).

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  return preference_loss(
    _per_token(chosen_log_prob, chosen_length),
    _per_token(rejected_log_prob, rejected_length),
    _per_token(ref_chosen_log_prob, chosen_length),
    _per_token(ref_rejected_log_prob, rejected_length),
    alpha=alpha,
    beta=beta,
  )


def simpo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  chosen_length: Array,
  rejected_length: Array,
  *,
  beta: float | Array,
  margin: float | Array,
) -> Array:
  """Simple preference optimisation: log-probs per token, no reference, a target margin.

      L = -log sigmoid(beta (log pi_w / |w| - log pi_l / |l|) - margin)

  Source: Meng, Xia, Chen, arXiv 2405.14734; `margin` is the paper's gamma.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats; a sum, divided inside.
    rejected_log_prob: [] sequence log-prob of the other response, nats; a sum, divided inside.
    chosen_length: [] tokens of the preferred response, EOS included.
    rejected_length: [] tokens of the other response, EOS included.
    beta: reward units per (nat per token).
    margin: target margin, reward units.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  chosen = _per_token(chosen_log_prob, chosen_length)
  rejected = _per_token(rejected_log_prob, rejected_length)
  return -jax.nn.log_sigmoid(beta * (chosen - rejected) - margin)


def length_normalised_ipo_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  ref_chosen_log_prob: Array,
  ref_rejected_log_prob: Array,
  chosen_length: Array,
  rejected_length: Array,
  *,
  tau: float | Array,
) -> Array:
  """`ipo_loss` on log-probs per token, the form common in trainers.

      L = ([log pi_w - log q_w] / |w| - [log pi_l - log q_l] / |l| - 1 / (2 tau))^2

  Source: Azar et al., arXiv 2310.12036, with the normalisation of later implementations.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    rejected_log_prob: [] sequence log-prob of the other response, nats.
    ref_chosen_log_prob: [] the same under the reference policy, nats.
    ref_rejected_log_prob: [] the same under the reference policy, nats.
    chosen_length: [] tokens of the preferred response, EOS included.
    rejected_length: [] tokens of the other response, EOS included.
    tau: KL weight, per (nat per token).

  Returns:
    Scalar loss, (nats per token) squared.

  Raises:
    AssertionError: an input is not a scalar.
  """
  return ipo_loss(
    _per_token(chosen_log_prob, chosen_length),
    _per_token(rejected_log_prob, rejected_length),
    _per_token(ref_chosen_log_prob, chosen_length),
    _per_token(ref_rejected_log_prob, rejected_length),
    tau=tau,
  )


def _per_token(log_prob: Array, length: Array) -> Array:
  """Log-prob divided by length; an empty response has length 1."""
  chex.assert_rank([log_prob, length], 0)
  log_prob = at_least_float32(log_prob)
  return log_prob / jnp.maximum(jnp.asarray(length).astype(log_prob.dtype), 1)
