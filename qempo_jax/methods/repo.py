"""REPO: GRPO with advantages decorrelated from log-probability, since that correlation lowers entropy."""

import dataclasses
import functools

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.constraints import Group
from qempo_jax.masking import masked_group
from qempo_jax.masking import masked_mean
from qempo_jax.methods import method
from qempo_jax.methods.grpo import grpo


def decorrelated_advantages(
  advantages: Array, log_probs: Array, mask: Array | None = None, *, share: float | Array
) -> Array:
  """Subtracts from advantages their regression on log-probability, if the correlation is positive.

      A'_k = A_k - share max(0, Cov(A, log pi)) / Var(log pi) (log pi(y_k) - mean log pi)

  A natural-gradient step of size e on a table policy changes its entropy by -e Cov(A, log pi), so with share 1 entropy
  does not fall. If rare responses have the higher advantages, nothing changes.

  Source: Petrenko et al., "Entropy-preserving reinforcement learning" (REPO), arXiv 2603.11682. The paper subtracts a
  term in log pi from advantages; the coefficient here is a reconstruction, not that of REPO-R.

  Args:
    advantages: [group] advantages of a base method, any unit u.
    log_probs: [group] sequence log-probs of the policy that sampled, nats.
    mask: [group] False leaves a member out; None keeps all.
    share: share of the correlation to remove, in [0, 1]; 0 is the base method.

  Returns:
    [group] detached advantages, unit u; unchanged if all log-probs are equal.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  a, log_pi, mask = masked_group(mask, advantages, log_probs)
  chex.assert_equal_shape([a, log_pi, mask])
  centred = jnp.where(mask, log_pi - masked_mean(log_pi, mask), 0.0)
  variance = masked_mean(centred**2, mask)
  slope = jnp.maximum(masked_mean(a * centred, mask), 0.0) / jnp.where(variance > 0, variance, 1.0)
  return jax.lax.stop_gradient(a - share * slope * centred)


def decorrelated(advantages: jax.Array, group: Group, terms: method.Terms, *, share: float):
  """Returns the change that `decorrelated_advantages` makes to the advantages."""
  return decorrelated_advantages(advantages, terms.log_probs, group.fresh, share=share) - advantages


def repo(*, share: float = 1.0, beta: float = 0.04, min_std: float = 1e-2) -> method.Method:
  """GRPO with `decorrelated_advantages`. Source: Petrenko et al., arXiv 2603.11682 (reconstruction).

  Args:
    share: share of the correlation to remove, in [0, 1]; 0 is GRPO.
    beta: weight of the KL penalty, reward units per nat.
    min_std: smallest standard deviation, as in `grpo`.
  """
  return dataclasses.replace(grpo(beta=beta, min_std=min_std), change=functools.partial(decorrelated, share=share))
