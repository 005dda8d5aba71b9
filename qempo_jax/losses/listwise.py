"""Losses of a prompt's scored responses: log-probs [G] of one prompt per call, `jax.vmap` outside.

A pair says which of two responses is better; a prompt's log of scored responses also lists acceptable answers.
`listwise_loss` distributes the likelihood over them by weights. Those of `even_weights` give every distinct answer the
same share. Equal weights are supervised fine-tuning on the acceptable responses of the log.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import masked


def even_weights(acceptable: Array, answers: Array) -> Array:
  """Weights that give each distinct acceptable answer of a prompt the same share, split over its responses.

      w_i = acceptable_i / (K n_i),     K distinct acceptable answers, n_i acceptable responses with the answer of i

  Args:
    acceptable: [G] True on responses whose score reaches the threshold; False on padding.
    answers: [G] integers, equal if two responses give the same answer.

  Returns:
    [G], NumPy for NumPy arrays; they sum to 1, or are all 0 if no response is acceptable.

  Examples:
    >>> even_weights(jnp.array([True, True, True, False]), jnp.array([7, 7, 4, 7]))
    Array([0.25, 0.25, 0.5 , 0.  ], dtype=float32)
  """
  chex.assert_rank([acceptable, answers], 1)
  chex.assert_equal_shape([acceptable, answers])
  copies = ((answers[:, None] == answers[None, :]) & acceptable[None, :]).sum(axis=-1)
  share = acceptable / (copies + (copies == 0))
  total = share.sum()
  return share / (total + (total == 0))


def listwise_loss(
  log_probs: Array,
  ref_log_probs: Array,
  chosen_weights: Array,
  rejected_weights: Array,
  mask: Array,
  *,
  pair_weight: float | Array,
  alpha: float | Array,
  beta: float | Array,
) -> Array:
  """Weighted likelihood of a prompt's acceptable responses, plus the pair loss of each against its unacceptable ones.

      L = sum_i a_i { -log pi_i - w sum_j b_j log sigmoid(alpha (log pi_i - log pi_j) - beta (log q_i - log q_j)) }

  With a = `even_weights` and b that sum to 1, L is smallest for pi uniform over the logged acceptable answers, for any w.
  The likelihood term alone is smallest there, and the pair terms vanish as unacceptable responses lose all probability.
  The likelihood does not distinguish acceptable answers outside the log from unacceptable ones; a small alpha slows their
  loss of probability.

  Source: ours, from the likelihood of a uniform target and the pair loss of arXiv 2511.08594.

  Args:
    log_probs: [G] log-probs of whole responses, nats.
    ref_log_probs: [G] log-probs under the reference policy, nats.
    chosen_weights: [G] a, 0 for an unacceptable response; detached.
    rejected_weights: [G] b, 0 for an acceptable response; detached.
    mask: [G] False on padding.
    pair_weight: w, reward units; 0 leaves the likelihood.
    alpha: entropy weight of the pair loss, reward units per nat.
    beta: reference weight of the pair loss, reward units per nat.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  arrays = (log_probs, ref_log_probs, chosen_weights, rejected_weights, mask)
  chex.assert_rank(arrays, 1)
  chex.assert_equal_shape(arrays)
  pi, q, a, b = (masked(x, mask) for x in arrays[:-1])
  a, b = jax.lax.stop_gradient((a, b))
  gain = alpha * pi - beta * q
  pairs = -jax.nn.log_sigmoid(gain[:, None] - gain[None, :])
  return jnp.sum(a * (pair_weight * (pairs @ b) - pi))
