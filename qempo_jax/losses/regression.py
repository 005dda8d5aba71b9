"""Regression of log-probs to a target that is known: offline or on-policy, one prompt's responses a call."""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked_mean


def target_regression_loss(log_probs: Array, target_log_probs: Array, mask: Array | None = None) -> Array:
  """Half the mean squared distance of log-probs from those of a normalised target.

      L = mean_k 1/2 (log pi(y_k) - log pi*(y_k))^2

  Zero if and only if pi = pi* on the responses, whichever policy wrote them: no importance weights. On samples of pi
  itself its expected gradient is that of KL(pi || pi*). For QEMPO-C the target is `exact.coherent_target_log_probs`; a
  target known up to a constant goes to `trajectory_balance_loss`.

  Source: least squares in log space, as trajectory balance (Malkin et al., arXiv 2201.13259) with log Z known.

  Args:
    log_probs: [G] sequence log-probs of the current policy, nats; the only input with a gradient.
    target_log_probs: [G] of the target, nats, finite.
    mask: [G] False leaves a response out; None keeps all.

  Returns:
    Scalar loss, nats squared; zero where all are masked.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  mask = jnp.ones(jnp.shape(log_probs), bool) if mask is None else mask
  chex.assert_rank([log_probs, target_log_probs, mask], 1)
  chex.assert_equal_shape([log_probs, target_log_probs, mask])
  residual = at_least_float32(log_probs) - jax.lax.stop_gradient(at_least_float32(target_log_probs))
  residual = jnp.where(jnp.asarray(mask).astype(bool), residual, 0.0)
  return masked_mean(residual**2, mask) / 2
