"""Trajectory balance: a regression of log-probs to the optimum's, on-policy or off-policy, one group a call."""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked_mean

_sg = jax.lax.stop_gradient


def trajectory_balance_loss(
  log_probs: Array,
  rewards: Array,
  ref_log_probs: Array,
  mask: Array | None = None,
  *,
  alpha: float | Array,
  beta: float | Array,
) -> Array:
  """Squared distance of a group's log-probs from the optimum's, with a detached estimate of log Z from the group.

      s_k = (r_k + beta log q(y_k)) / alpha,     log Z = sg(mean_k [s_k - log pi(y_k)])
      L = mean_k (log Z + log pi(y_k) - s_k)^2

  It is zero for every group if and only if pi is proportional to q^(beta/alpha) exp(r / alpha). Samples may come
  from any policy, a replay buffer or a data set; no importance weights are needed. On samples of pi its gradient is
  exactly twice the policy gradient of the shaped reward divided by alpha, with `advantages.group_mean`.

  Source: VarGrad, Richter et al., arXiv 2010.10436; trajectory balance, Malkin et al., arXiv 2201.13259; for
  language models arXiv 2310.04363 and TBA, arXiv 2503.18929. With QEMPO-KL's weights: reconstruction.

  Args:
    log_probs: [G] sequence log-probs under the current policy, nats; the only input with a gradient.
    rewards: [G] rewards, in any unit u.
    ref_log_probs: [G] sequence log-probs under the reference policy, nats.
    mask: [G] True on members that count; None: all.
    alpha: entropy weight, u per nat, positive.
    beta: reference weight, u per nat.

  Returns:
    Scalar loss, nats squared; zero for a group of one or an all-masked group.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  mask = jnp.ones(jnp.shape(log_probs), bool) if mask is None else mask
  chex.assert_rank([log_probs, rewards, ref_log_probs, mask], 1)
  chex.assert_equal_shape([log_probs, rewards, ref_log_probs, mask])
  log_pi, r, log_q = map(at_least_float32, (log_probs, rewards, ref_log_probs))
  s = _sg((r + beta * log_q) / alpha)
  log_z = _sg(masked_mean(s - log_pi, mask))
  residual = jnp.where(jnp.asarray(mask).astype(bool), log_z + log_pi - s, 0.0)
  return masked_mean(residual**2, mask)
