"""Advantages: detached shaped rewards with entropy in the objective, and group baselines.

Nothing here carries a gradient. The shaped reward contains the current policy's own log-prob. Recompute it
for every inner epoch: a stored one turns the entropy into a cross-entropy.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked
from qempo_jax.masking import masked_mean

_sg = jax.lax.stop_gradient


def shaped_rewards(
  rewards: Array,
  log_probs: Array,
  ref_log_probs: Array,
  *,
  alpha: float | Array,
  beta: float | Array,
) -> Array:
  """Detached reward with the policy gradient of the whole family's objective.

      R_k = r_k - alpha log pi(y_k) + beta log q(y_k),
      grad E[r] + alpha grad H(pi) + beta grad E[log q] = E[R grad log pi]

  because E[grad log pi] = 0. alpha = beta gives RLHF with a KL penalty, beta = 0 gives QEMPO.

  Source: the family of Slocum et al., arXiv 2511.08594, with the weights of QEMPO-KL (arXiv 2602.15894;
  reconstruction).

  Args:
    rewards: [group] rewards, in any unit u.
    log_probs: [group] sequence log-probs under the current policy, nats.
    ref_log_probs: [group] sequence log-probs under the reference policy, nats.
    alpha: entropy weight, u per nat.
    beta: reference weight, u per nat.

  Returns:
    [group] detached shaped rewards, unit u.

  Raises:
    AssertionError: the three arrays differ in shape.
  """
  chex.assert_equal_shape([rewards, log_probs, ref_log_probs])
  r, log_pi, log_q = map(at_least_float32, (rewards, log_probs, ref_log_probs))
  return _sg(r - alpha * log_pi + beta * log_q)


def lagrangian_rewards(
  rewards: Array,
  log_probs: Array,
  ref_log_probs: Array,
  *,
  quality_multiplier: float | Array,
  kl_multiplier: float | Array,
  entropy_weight: float | Array,
) -> Array:
  """Detached reward of the Lagrangian, scaled so that its step stays bounded as the multipliers grow.

      R_k = [lambda r_k - (h + mu) log pi(y_k) + mu log q(y_k)] / (h + lambda + mu)

  h = 1 gives QEMPO (mu = 0) and QEMPO-KL. h = 0, mu = 1, lambda = 1 / beta gives RLHF. Multiplying by
  (h + lambda + mu) / lambda gives `shaped_rewards` with alpha = (h + mu) / lambda, beta = mu / lambda.

  Source: Lagrangian of the program of arXiv 2602.15894 (reconstruction).

  Args:
    rewards: [group] rewards, in any unit u.
    log_probs: [group] sequence log-probs under the current policy, nats.
    ref_log_probs: [group] sequence log-probs under the reference policy, nats.
    quality_multiplier: lambda >= 0, nats per u.
    kl_multiplier: mu >= 0, unitless.
    entropy_weight: h >= 0, unitless; the three weights must not all be zero.

  Returns:
    [group] detached rewards, nats over a dimensionless scale.

  Raises:
    AssertionError: the three arrays differ in shape.
  """
  chex.assert_equal_shape([rewards, log_probs, ref_log_probs])
  r, log_pi, log_q = map(at_least_float32, (rewards, log_probs, ref_log_probs))
  h, lam, mu = entropy_weight, quality_multiplier, kl_multiplier
  return _sg((lam * r - (h + mu) * log_pi + mu * log_q) / (h + lam + mu))


def leave_one_out(x: Array, mask: Array | None = None) -> Array:
  """Each member minus the mean of the others: an unbiased baseline.

      A_k = x_k - mean_{j != k} x_j

  A single member keeps x_k, which is still unbiased.

  Source: Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free"; RLOO, arXiv 2402.14740.

  Args:
    x: [group] rewards of samples of one prompt.
    mask: [group] True on members that count in means; the others get zero. None: all.

  Returns:
    [group] detached advantages.

  Raises:
    AssertionError: `x` is not of rank 1, or the mask has another shape.
  """
  x, mask = _group(x, mask)
  others = jnp.sum(mask) - 1
  shifted = _shifted(x, mask)
  mean_of_others = (jnp.sum(shifted) - shifted) / jnp.maximum(others, 1)
  return _sg(masked(jnp.where(others > 0, shifted - mean_of_others, x), mask))


def group_mean(x: Array, mask: Array | None = None) -> Array:
  """Each member minus the mean of all members, itself included.

      A_k = x_k - mean_j x_j

  Its expected gradient is (G - 1) / G of the true one, since a sample contributes to its own baseline.

  Source: GRPO without the division, as in Dr. GRPO, arXiv 2503.20783.

  Args:
    x: [group] rewards of samples of one prompt.
    mask: [group] True on members that count in the mean; the others get zero. None: all.

  Returns:
    [group] detached advantages; all zero in a group of equal rewards.

  Raises:
    AssertionError: `x` is not of rank 1, or the mask has another shape.
  """
  return _sg(_centred(*_group(x, mask)))


def std_normalised(x: Array, mask: Array | None = None, *, min_std: float) -> Array:
  """Each member minus the mean, divided by the group's standard deviation: changes the optimum.

      A_k = (x_k - mean_j x_j) / max(std_j x_j, min_std)

  The divisor depends on the prompt and on the policy. It rescales each prompt's gradient, so under a shared model
  prompts are weighted by 1 / std. At the optimum the shaped reward's deviation goes to zero, so that steps divided by
  it never shrink. Dividing only the reward term r by std(r) changes alpha per prompt, to alpha std(r), and the
  stationary point is another policy. This option exists for comparison with GRPO.

  Source: Shao et al., GRPO, arXiv 2402.03300.

  Args:
    x: [group] rewards of samples of one prompt.
    mask: [group] True on members that count in mean and std; the others get zero. None: all.
    min_std: positive floor of the divisor, unit of `x`; it bounds the advantages of near-constant groups.

  Returns:
    [group] detached advantages; all zero in a group of equal rewards.

  Raises:
    AssertionError: `x` is not of rank 1, or the mask has another shape.
  """
  x, mask = _group(x, mask)
  centred = _centred(x, mask)
  std = jnp.sqrt(masked_mean(centred**2, mask))
  return _sg(centred / jnp.maximum(std, min_std))


def _group(x: Array, mask: Array | None) -> tuple[Array, Array]:
  chex.assert_rank(x, 1)
  mask = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
  chex.assert_equal_shape([x, mask])
  return _sg(masked(x, mask)), mask


def _shifted(x: Array, mask: Array) -> Array:
  """x minus its first unmasked member, so that equal rewards have exactly zero deviation despite rounding."""
  return masked(x - x[jnp.argmax(mask)], mask)


def _centred(x: Array, mask: Array) -> Array:
  shifted = _shifted(x, mask)
  return masked(shifted - masked_mean(shifted, mask), mask)
