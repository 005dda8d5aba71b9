"""Importance weights of samples from an earlier policy, for measurements and gradients of the current one.

With behaviour policy b and current policy pi,

    w(y) = min(pi(y) / b(y), c),        E_b[w f] = E_pi[f]   if c clips nothing,

for any f of whole responses: the score-function gradient, the entropy surrogates, and means. The clip c bounds the
variance and biases towards b (truncated importance sampling: Ionides, "Truncated importance sampling", 2008).
"""

import chex
import jax
import jax.numpy as jnp

from qempo_jax.masking import masked


def weights(log_probs: jax.Array, behaviour_log_probs: jax.Array, *, max_weight: chex.Numeric) -> jax.Array:
  """min(pi(y) / b(y), c), detached.

  Args:
    log_probs: sequence log-probs log pi(y), any shape, nats.
    behaviour_log_probs: log b(y), same shape.
    max_weight: c.

  Returns:
    Weights, same shape.
  """
  chex.assert_equal_shape([log_probs, behaviour_log_probs])
  log_ratio = jnp.minimum(log_probs - behaviour_log_probs, jnp.log(max_weight))
  return jax.lax.stop_gradient(jnp.exp(log_ratio))


def mean(values: jax.Array, weight: jax.Array, mask: jax.Array) -> jax.Array:
  """Self-normalised mean sum w x / sum w over the mask; 0 if all is masked."""
  chex.assert_equal_shape([values, weight, mask])
  total = jnp.sum(masked(weight, mask))
  return jnp.sum(masked(weight * values, mask)) / jnp.where(total > 0, total, 1.0)


def effective_share(weight: jax.Array, mask: jax.Array) -> jax.Array:
  """Effective sample size (sum w)^2 / sum w^2 over the mask, divided by the number of samples."""
  chex.assert_equal_shape([weight, mask])
  kept = masked(weight, mask)
  squares = jnp.sum(mask) * jnp.sum(kept**2)
  return jnp.sum(kept) ** 2 / jnp.where(squares > 0, squares, 1.0)
