"""Regression of log-probs to a known target distribution: offline or on-policy, one prompt's responses per call."""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked_mean


def target_regression_loss(log_probs: Array, target_log_probs: Array, mask: Array | None = None) -> Array:
  """Half the mean squared distance of log-probs from those of a normalised target.

      L = mean_k 1/2 (log pi(y_k) - log pi*(y_k))^2

  The loss is zero if and only if pi = pi* on the responses. They may come from any policy, without importance weights.
  On samples of pi its expected gradient is that of KL(pi || pi*). For QEMPO-C the target is
  `exact.coherent_target_log_probs`. For a target known up to a constant use `trajectory_balance_loss`.

  Source: least squares in log space, as trajectory balance (Malkin et al., arXiv 2201.13259) with log Z known.

  Args:
    log_probs: [G] sequence log-probs of the current policy, nats; the only input with a gradient.
    target_log_probs: [G] log-probs of the target, nats, finite.
    mask: [G] False leaves a response out; None keeps all.

  Returns:
    Scalar loss, nats squared; zero if all responses are masked.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  mask = jnp.ones(jnp.shape(log_probs), bool) if mask is None else mask
  chex.assert_rank([log_probs, target_log_probs, mask], 1)
  chex.assert_equal_shape([log_probs, target_log_probs, mask])
  residual = at_least_float32(log_probs) - jax.lax.stop_gradient(at_least_float32(target_log_probs))
  residual = jnp.where(jnp.asarray(mask).astype(bool), residual, 0.0)
  return masked_mean(residual**2, mask) / 2
