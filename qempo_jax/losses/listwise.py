"""Losses of a prompt's scored responses: their log-probs side by side, [G]; one prompt a call, `jax.vmap` outside.

A pair says which of two responses is better; a prompt's log of scored responses also says which acceptable answers there are.
`listwise_loss` spreads likelihood over them by weights: those of `even_weights` give every different answer the same share, and
equal ones are supervised fine-tuning on the acceptable responses as they were drawn.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import masked


def even_weights(acceptable: Array, answers: Array) -> Array:
  """Weights that give each different acceptable answer of a prompt the same share, split over the responses that give it.

      w_i = acceptable_i / (K n_i),     K different acceptable answers, n_i acceptable responses with the answer of i

  Args:
    acceptable: [G] True on responses whose score reaches the threshold; False on padding.
    answers: [G] integers, equal where two responses give the same answer.

  Returns:
    [G], NumPy for NumPy arrays; they sum to 1, or are all 0 where no response is acceptable.

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
  """Weighted likelihood of a prompt's acceptable responses, and the pair loss of each against its unacceptable ones.

      L = sum_i a_i { -log pi_i - w sum_j b_j log sigmoid(alpha (log pi_i - log pi_j) - beta (log q_i - log q_j)) }

  With a = `even_weights` and b that sum to 1, L is lowest where pi is uniform over the logged acceptable answers, whatever w:
  the likelihood alone is lowest there, and the pair terms vanish as unacceptable responses lose all probability. Acceptable
  answers that are not in the log are not told from unacceptable ones by the likelihood; a small alpha slows that.

  Source: ours, of the likelihood of a uniform target and the pair loss of arXiv 2511.08594.

  Args:
    log_probs: [G] log-probs of whole responses, nats.
    ref_log_probs: [G] under the reference policy, nats.
    chosen_weights: [G] a, 0 where a response is not acceptable; detached.
    rejected_weights: [G] b, 0 where it is; detached.
    mask: [G] False on padding.
    pair_weight: w, reward units; 0 leaves the likelihood.
    alpha: entropy weight of the pair loss, reward units per nat.
    beta: its reference weight, reward units per nat.

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
