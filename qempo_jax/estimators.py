"""Sequence entropy and KL from samples of the policy: values, and surrogates whose gradient is right.

A surrogate is a scalar of one sampled sequence: its value is the estimate, its gradient, averaged over
samples of the current policy, is what its name says. All are for *sequences* of the sampling policy itself:
temperature, top-p or top-k at sampling must be in the scored distribution too.

Which gradient does k1, k2 or k3 give? With u = log pi(y) - log q(y) of the whole sequence,

  value              differentiated in the loss          detached, as a penalty in the reward
  k1 = u             0 (E[grad log pi] = 0)              grad KL(pi || q), the right one
  k2 = u^2 / 2       grad KL(pi || q), the right one     grad E[k2] - grad KL(pi || q)
  k3 = e^-u - 1 + u  grad KL(q || pi), the forward KL    grad KL(pi || q) - grad KL(q || pi), near q almost 0

So k3 is a fine number to log and a wrong term to train on. Sources: arXiv 2506.09477 (gradients of k1, k2,
k3), arXiv 2504.10637 (Rao-Blackwell estimators of KL); J. Schulman, "Approximating KL divergence" (the
names). The same table holds at q = 1 for the entropy: differentiating -log pi of samples gives 0.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.estimator_values import EntropyReport
from qempo_jax.estimator_values import KLValues
from qempo_jax.estimator_values import Total
from qempo_jax.estimator_values import entropy_report
from qempo_jax.estimator_values import kl_values
from qempo_jax.masking import masked

_sg = jax.lax.stop_gradient

__all__ = [
  "EntropyReport",
  "KLValues",
  "Total",
  "entropy_report",
  "kl_values",
  "leave_one_out_to_go",
  "reward_to_go_entropy_surrogate",
  "score_function_entropy_surrogate",
  "score_function_kl_surrogate",
  "sequence_entropy_surrogate",
  "sequence_kl_surrogate",
  "token_only_entropy_surrogate",
]


def sequence_entropy_surrogate(
  token_log_probs: Array,
  token_entropies: Array,
  mask: Array,
  *,
  baseline: float | Array | None = None,
) -> Array:
  """Rao-Blackwell entropy of a sequence: exact next-token entropies along a sampled path; unbiased gradient.

      value     sum_t h_t
      gradient  sum_t [grad h_t + (sum_{j>t} h_j - b_t) grad log pi(y_t | y_<t)],   E of which is grad H(pi)

  for any b that does not depend on this sample, because E[grad log pi(y_t | y_<t)] = 0 at every t: it changes the
  variance alone.

  Source: chain rule of entropy; Rao-Blackwell form after arXiv 2504.10637.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    token_entropies: [T] entropies h_t of the next-token distributions, nats, with gradient.
    mask: [T] True on response tokens, EOS included.
    baseline: b, [] for one number a sequence or [T], nats; a constant, or from *other* samples of the prompt, as
      `leave_one_out_to_go` gives it; detached inside; None for none.

  Returns:
    Scalar, nats, whatever the baseline; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape, or the baseline fits neither [] nor [T].
  """
  return _rao_blackwell(token_log_probs, token_entropies, mask, baseline)


def sequence_kl_surrogate(
  token_log_probs: Array,
  token_kls: Array,
  mask: Array,
  *,
  baseline: float | Array | None = None,
) -> Array:
  """Rao-Blackwell KL of a sequence: exact next-token KLs along a sampled path; unbiased gradient.

      value     sum_t k_t,   k_t = KL(pi(. | y_<t) || q(. | y_<t))
      gradient  sum_t [grad k_t + (sum_{j>t} k_j - b_t) grad log pi(y_t | y_<t)],   E of which is grad KL(pi || q)

  for any b that does not depend on this sample.

  Source: arXiv 2504.10637.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    token_kls: [T] full-distribution KL of every next-token distribution, nats, with gradient.
    mask: [T] True on response tokens, EOS included.
    baseline: b, as in `sequence_entropy_surrogate`, of the KLs.

  Returns:
    Scalar, nats, whatever the baseline; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape, or the baseline fits neither [] nor [T].
  """
  return _rao_blackwell(token_log_probs, token_kls, mask, baseline)


def leave_one_out_to_go(token_values: Array, mask: Array) -> Array:
  """What the other samples of a prompt have to come after each position: a baseline for the two above.

      b_kt = mean_{i != k} sum_{j>t} x_ij

  Samples that have ended by t have nothing to come and count as 0.

  Source: the leave-one-out baseline of Kool, van Hoof, Welling (2019), at every position.

  Args:
    token_values: [G, T] next-token entropies or KLs along G independent samples of one prompt, nats.
    mask: [G, T] True on response tokens, EOS included; a row without any is no sample, and is left out.

  Returns:
    [G, T] detached, nats; zero where there is no other sample.

  Raises:
    AssertionError: the arrays are not of rank 2 or differ in shape.
  """
  chex.assert_rank([token_values, mask], 2)
  chex.assert_equal_shape([token_values, mask])
  to_go = jax.vmap(_sum_after)(masked(token_values, mask))
  others = jnp.sum(jnp.any(jnp.asarray(mask).astype(bool), axis=1)) - 1
  return _sg((jnp.sum(to_go, axis=0) - to_go) / jnp.maximum(others, 1))


def score_function_entropy_surrogate(token_log_probs: Array, mask: Array, *, baseline: float | Array) -> Array:
  """Score-function entropy of a sequence: needs no token entropies; unbiased, with more variance.

      value     -log pi(y)
      gradient  -(log pi(y) - baseline) grad log pi(y)

  Source: Williams (1992), with -log pi as a detached reward.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    mask: [T] True on response tokens, EOS included.
    baseline: constant or mean of *other* samples' log pi(y), nats; 0 for none.

  Returns:
    Scalar, nats; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  (log_pi,) = _checked(mask, token_log_probs)
  sequence = jnp.sum(log_pi)
  return -_sg(sequence) - _sg(sequence - baseline) * _zero_with_gradient(sequence)


def reward_to_go_entropy_surrogate(token_log_probs: Array, mask: Array) -> Array:
  """Score-function entropy that credits each token with the log-probs from it on; unbiased.

      value     -log pi(y)
      gradient  -sum_t (sum_{j>=t} log pi(y_j | y_<j)) grad log pi(y_t | y_<t)

  Source: causality applied to Williams (1992).

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    mask: [T] True on response tokens, EOS included.

  Returns:
    Scalar, nats; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  (log_pi,) = _checked(mask, token_log_probs)
  to_go = _sg(_sum_after(log_pi) + log_pi)
  return -_sg(jnp.sum(log_pi)) - jnp.sum(to_go * _zero_with_gradient(log_pi))


def token_only_entropy_surrogate(token_entropies: Array, mask: Array) -> Array:
  """The usual token-entropy bonus: right in value, *biased* in gradient; a baseline.

      value     sum_t h_t
      gradient  sum_t grad h_t, without what a token does to the entropy after it

  Args:
    token_entropies: [T] entropies h_t of the next-token distributions, nats, with gradient.
    mask: [T] True on response tokens, EOS included.

  Returns:
    Scalar, nats; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  (entropies,) = _checked(mask, token_entropies)
  return jnp.sum(entropies)


def score_function_kl_surrogate(
  token_log_probs: Array, ref_token_log_probs: Array, mask: Array, *, baseline: float | Array
) -> Array:
  """Score-function KL of a sequence: k1 as a detached reward; unbiased.

      value     u = log pi(y) - log q(y)
      gradient  (u - baseline) grad log pi(y)

  Source: arXiv 2506.09477.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    ref_token_log_probs: [T] of the same tokens under the reference policy, nats.
    mask: [T] True on response tokens, EOS included.
    baseline: constant or mean of *other* samples' u, nats; 0 for none.

  Returns:
    Scalar, nats; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  log_pi, log_q = map(jnp.sum, _checked(mask, token_log_probs, ref_token_log_probs))
  u = _sg(log_pi - log_q)
  return u + (u - baseline) * _zero_with_gradient(log_pi)


def _rao_blackwell(token_log_probs: Array, token_values: Array, mask: Array, baseline: float | Array | None) -> Array:
  log_pi, values = _checked(mask, token_log_probs, token_values)
  weights = _sum_after(values)
  if baseline is not None:
    baseline = jnp.asarray(baseline)
    chex.assert_shape(baseline, () if baseline.ndim == 0 else weights.shape)
    weights = masked(weights - baseline, mask)
  return jnp.sum(values + _sg(weights) * _zero_with_gradient(log_pi))


def _sum_after(x: Array) -> Array:
  """sum_{j>t} x_j for every t."""
  return jnp.cumsum(x[::-1])[::-1] - x


def _zero_with_gradient(x: Array) -> Array:
  """0 in value, grad x in gradient."""
  return x - _sg(x)


def _checked(mask: Array, *token_arrays: Array) -> tuple[Array, ...]:
  chex.assert_rank([mask, *token_arrays], 1)
  chex.assert_equal_shape([mask, *token_arrays])
  return tuple(masked(x, mask) for x in token_arrays)
