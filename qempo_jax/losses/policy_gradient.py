"""Policy-gradient losses of one trajectory; `jax.vmap` outside, averaged once by the caller.

Each loss is a sum over tokens, the gradient of the sequence's log-prob. Losses with importance ratios are in
`policy_gradient_clip`.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import masked
from qempo_jax.masking import masked_sum

_sg = jax.lax.stop_gradient


def policy_gradient_loss(token_log_probs: Array, advantages: Array, mask: Array) -> Array:
  """Score-function loss of one trajectory; a sum over its tokens, without length normalisation.

      L = -sum_t mask_t sg(A_t) log pi(y_t | y_<t)

  Source: Williams (1992), "Simple statistical gradient-following algorithms".

  Args:
    token_log_probs: [T] log-probs of the sampled tokens under the current policy, nats.
    advantages: [] or [T] detached inside; a scalar applies to every token.
    mask: [T] True on response tokens, EOS included.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  log_pi, a = checked(advantages, mask, token_log_probs)
  return -jnp.sum(_sg(a) * log_pi)


def token_entropy_bonus_loss(
  token_log_probs: Array,
  token_entropies: Array,
  advantages: Array,
  mask: Array,
  *,
  entropy_weight: float | Array,
) -> Array:
  """Policy gradient with a fixed token-entropy bonus: a biased baseline.

      L = policy_gradient_loss - entropy_weight sum_t mask_t h_t

  The bonus keeps grad h_t and ignores a token's effect on later entropies, so it can point the wrong way. For the
  unbiased gradient, replace the sum of h_t by `estimators.sequence_entropy_surrogate`.

  Source: Mnih et al., A3C, arXiv 1602.01783, applied to tokens.

  Args:
    token_log_probs: [T] under the current policy, nats.
    token_entropies: [T] entropies h_t of the next-token distributions, nats, with gradient.
    advantages: [] or [T] detached inside.
    mask: [T] True on response tokens, EOS included.
    entropy_weight: weight of the bonus, unit of the advantage per nat.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  chex.assert_equal_shape([token_log_probs, token_entropies, mask])
  loss = policy_gradient_loss(token_log_probs, advantages, mask)
  return loss - entropy_weight * masked_sum(token_entropies, mask)


def checked(advantages: Array, mask: Array, *token_arrays: Array) -> tuple[Array, ...]:
  """Checks shapes, then zeroes masked slots; returns the token arrays, then the advantages as one a token."""
  chex.assert_rank([mask, *token_arrays], 1)
  chex.assert_rank(advantages, {0, 1})
  chex.assert_equal_shape([mask, *token_arrays])
  if jnp.ndim(advantages) == 1:
    chex.assert_equal_shape([mask, advantages])
  advantages = jnp.broadcast_to(jnp.asarray(advantages), jnp.shape(mask))
  return tuple(masked(x, mask) for x in (*token_arrays, advantages))
