"""Losses of single responses: KTO, supervised fine-tuning, and the likelihood term of pair losses."""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked_sum


def kto_loss(
  log_prob: Array,
  ref_log_prob: Array,
  desirable: Array,
  reference_kl: Array,
  *,
  beta: float | Array,
  desirable_weight: float | Array,
  undesirable_weight: float | Array,
) -> Array:
  """Kahneman-Tversky optimisation: one response labelled desirable or undesirable, without a pair.

      u = log pi - log q,   z = sg(max(reference_kl, 0))
      L = desirable_weight   (1 - sigmoid(beta (u - z)))   if desirable
      L = undesirable_weight (1 - sigmoid(beta (z - u)))   otherwise

  Source: Ethayarajh et al., arXiv 2402.01306.

  Args:
    log_prob: [] sequence log-prob of the response, nats.
    ref_log_prob: [] the same under the reference policy, nats.
    desirable: [] boolean label.
    reference_kl: [] batch estimate of KL(pi || q), nats: the mean of log pi - log q over mismatched prompts and
      responses; detached and clipped at 0 inside.
    beta: slope of the sigmoid, per nat.
    desirable_weight: weight of a desirable response.
    undesirable_weight: weight of an undesirable response.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  chex.assert_rank([log_prob, ref_log_prob, desirable, reference_kl], 0)
  u = at_least_float32(log_prob) - at_least_float32(ref_log_prob)
  z = jax.lax.stop_gradient(jnp.maximum(at_least_float32(reference_kl), 0))
  gain = desirable_weight * jax.nn.sigmoid(beta * (z - u))
  pain = undesirable_weight * jax.nn.sigmoid(beta * (u - z))
  return jnp.where(desirable, gain, pain)


def nll_loss(token_log_probs: Array, mask: Array) -> Array:
  """Negative log-likelihood of one response, summed over its tokens: supervised fine-tuning.

      L = -sum_t mask_t log pi(y_t | y_<t)

  The training step divides once, by the global number of tokens or sequences.

  Args:
    token_log_probs: [T] log-probs of the response's tokens, nats.
    mask: [T] True on response tokens, EOS included.

  Returns:
    Scalar loss, nats; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  chex.assert_rank([token_log_probs, mask], 1)
  chex.assert_equal_shape([token_log_probs, mask])
  return -masked_sum(token_log_probs, mask)


def nll_anchor(chosen_log_prob: Array, *, weight: float | Array) -> Array:
  """Likelihood term of the chosen response, for pairwise losses that let its log-prob fall: -weight log pi_w.

  Source: the anchored form of arXiv 2401.08417 and arXiv 2404.19733.

  Args:
    chosen_log_prob: [] sequence log-prob of the preferred response, nats.
    weight: weight of the term, per nat.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: the input is not a scalar.
  """
  chex.assert_rank(chosen_log_prob, 0)
  return -weight * at_least_float32(chosen_log_prob)
