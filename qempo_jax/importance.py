"""Weights of samples that an earlier policy drew, so that what is measured and learned is the current policy's.

With b the policy that drew a response y and pi the current one,

    w(y) = min(pi(y) / b(y), c),        E_b[w f] = E_pi[f]   where c cuts nothing,

for any f of whole responses: the score-function gradient, the entropy surrogates, and means alike. The cut c bounds the
variance and biases toward b (truncated importance sampling: Ionides, "Truncated importance sampling", 2008).
"""

import chex
import jax
import jax.numpy as jnp

from qempo_jax.masking import masked


def weights(log_probs: jax.Array, behaviour_log_probs: jax.Array, *, max_weight: chex.Numeric) -> jax.Array:
  """min(pi(y) / b(y), c), detached.

  Args:
    log_probs: log pi(y) of whole responses, any shape, nats.
    behaviour_log_probs: log b(y), same shape.
    max_weight: c.

  Returns:
    Weights, same shape.
  """
  chex.assert_equal_shape([log_probs, behaviour_log_probs])
  log_ratio = jnp.minimum(log_probs - behaviour_log_probs, jnp.log(max_weight))
  return jax.lax.stop_gradient(jnp.exp(log_ratio))


def mean(values: jax.Array, weight: jax.Array, mask: jax.Array) -> jax.Array:
  """sum w x / sum w over the mask, self-normalised; 0 where nothing is unmasked."""
  chex.assert_equal_shape([values, weight, mask])
  total = jnp.sum(masked(weight, mask))
  return jnp.sum(masked(weight * values, mask)) / jnp.where(total > 0, total, 1.0)


def effective_share(weight: jax.Array, mask: jax.Array) -> jax.Array:
  """(sum w)^2 / (n sum w^2) over the mask: the share of the samples that would be worth as much drawn afresh."""
  chex.assert_equal_shape([weight, mask])
  kept = masked(weight, mask)
  squares = jnp.sum(mask) * jnp.sum(kept**2)
  return jnp.sum(kept) ** 2 / jnp.where(squares > 0, squares, 1.0)
