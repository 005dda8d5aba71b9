"""Sequence entropy and KL from samples of the policy: values, and surrogates with correct gradients.

A surrogate is a scalar of one sampled sequence. Its value is the estimate; its gradient, averaged over samples of the
current policy, is the gradient of the named quantity. All are for *sequences* of the sampling policy itself:
temperature, top-p or top-k at sampling must be in the scored distribution too.

The gradients of k1, k2 and k3, with u = log pi(y) - log q(y) of the whole sequence:

  value              differentiated in the loss          detached, as a penalty in the reward
  k1 = u             0 (E[grad log pi] = 0)              grad KL(pi || q), the right one
  k2 = u^2 / 2       grad KL(pi || q), the right one     grad E[k2] - grad KL(pi || q)
  k3 = e^-u - 1 + u  grad KL(q || pi), the forward KL    grad KL(pi || q) - grad KL(q || pi), near q almost 0

So k3 is a good metric and a wrong training term. Sources: arXiv 2506.09477 (gradients of k1, k2,
k3), arXiv 2504.10637 (Rao-Blackwell estimators of KL); J. Schulman, "Approximating KL divergence" (the
names). The same table holds at q = 1 for the entropy: differentiating -log pi of samples gives 0.
"""

from typing import NamedTuple

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked

_sg = jax.lax.stop_gradient

__all__ = [
  "KLValues",
  "kl_values",
  "leave_one_out_to_go",
  "reward_to_go_entropy_surrogate",
  "score_function_entropy_surrogate",
  "score_function_kl_surrogate",
  "sequence_entropy_surrogate",
  "sequence_kl_surrogate",
  "token_only_entropy_surrogate",
]


class KLValues(NamedTuple):
  """k1, k2 and k3 of one or more samples, nats, each of the inputs' shape."""

  k1: Array
  k2: Array
  k3: Array


def kl_values(log_prob: Array, ref_log_prob: Array) -> KLValues:
  """Three Monte Carlo values of KL(pi || q) from samples of pi, as metrics; see above for their gradients.

      u = log pi - log q:   k1 = u,   k2 = u^2 / 2,   k3 = e^-u - 1 + u

  k1 and k3 have mean KL(pi || q); k2 only near q. k3 overflows if q is far above pi.

  Source: J. Schulman, "Approximating KL divergence" (2020).

  Args:
    log_prob: any shape, log-probs of samples of pi (sequences or single tokens), nats.
    ref_log_prob: same shape, under q, nats.

  Returns:
    `KLValues`, each of the inputs' shape.

  Raises:
    AssertionError: the two differ in shape.
  """
  chex.assert_equal_shape([log_prob, ref_log_prob])
  u = at_least_float32(log_prob) - at_least_float32(ref_log_prob)
  return KLValues(k1=u, k2=u**2 / 2, k3=jnp.expm1(-u) + u)


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

  The baseline b must not depend on this sample. It changes the variance alone, because E[grad log pi(y_t | y_<t)] = 0
  at every t.

  Source: chain rule of entropy; Rao-Blackwell form after arXiv 2504.10637.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    token_entropies: [T] entropies h_t of the next-token distributions, nats, with gradient.
    mask: [T] True on response tokens, EOS included.
    baseline: b, [] or [T], nats, detached inside; a constant, or from *other* samples of the prompt by
      `leave_one_out_to_go`. None: 0.

  Returns:
    Scalar, nats, independent of the baseline; zero for an all-masked row.

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

  The baseline b must not depend on this sample.

  Source: arXiv 2504.10637.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    token_kls: [T] full-distribution KL of every next-token distribution, nats, with gradient.
    mask: [T] True on response tokens, EOS included.
    baseline: b for the KLs, as in `sequence_entropy_surrogate`.

  Returns:
    Scalar, nats, independent of the baseline; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape, or the baseline fits neither [] nor [T].
  """
  return _rao_blackwell(token_log_probs, token_kls, mask, baseline)


def leave_one_out_to_go(token_values: Array, mask: Array) -> Array:
  """Mean over a prompt's other samples of the sum after each position: a baseline for the two surrogates above.

      b_kt = mean_{i != k} sum_{j>t} x_ij

  A sample that has ended by t counts as 0.

  Source: the leave-one-out baseline of Kool, van Hoof, Welling (2019), at every position.

  Args:
    token_values: [G, T] next-token entropies or KLs along G independent samples of one prompt, nats.
    mask: [G, T] True on response tokens, EOS included; an all-masked row is not a sample.

  Returns:
    [G, T] detached, nats; zero if there is no other sample.

  Raises:
    AssertionError: the arrays are not of rank 2 or differ in shape.
  """
  chex.assert_rank([token_values, mask], 2)
  chex.assert_equal_shape([token_values, mask])
  to_go = jax.vmap(_sum_after)(masked(token_values, mask))
  others = jnp.sum(jnp.any(jnp.asarray(mask).astype(bool), axis=1)) - 1
  return _sg((jnp.sum(to_go, axis=0) - to_go) / jnp.maximum(others, 1))


def score_function_entropy_surrogate(token_log_probs: Array, mask: Array, *, baseline: float | Array) -> Array:
  """Score-function entropy of a sequence: unbiased, without token entropies, with more variance.

      value     -log pi(y)
      gradient  -(log pi(y) - baseline) grad log pi(y)

  Source: Williams (1992), with -log pi as a detached reward.

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the policy that sampled them, nats.
    mask: [T] True on response tokens, EOS included.
    baseline: a constant, or the mean of *other* samples' log pi(y), nats; 0: no baseline.

  Returns:
    Scalar, nats; zero for an all-masked row.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  (log_pi,) = _checked(mask, token_log_probs)
  sequence = jnp.sum(log_pi)
  return -_sg(sequence) - _sg(sequence - baseline) * _zero_with_gradient(sequence)


def reward_to_go_entropy_surrogate(token_log_probs: Array, mask: Array) -> Array:
  """Score-function entropy with each token's reward to go, the log-probs from it on; unbiased.

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
  """Token-entropy bonus: right in value, *biased* in gradient; for comparison.

      value     sum_t h_t
      gradient  sum_t grad h_t, without a token's effect on later entropies

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
    ref_token_log_probs: [T] log-probs of the same tokens under the reference policy, nats.
    mask: [T] True on response tokens, EOS included.
    baseline: a constant, or the mean of *other* samples' u, nats; 0: no baseline.

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
