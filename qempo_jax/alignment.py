"""KL to the ideal aligned policy, decomposed into diversity and quality."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from qempo_jax.dual_newton import entropy
from qempo_jax.dual_newton import expectation


class AlignmentDecomposition(NamedTuple):
  """KL(pi || pi*) = diversity_term + quality_term, all in nats.

  Attributes:
    kl: KL to the ideal policy.
    diversity_term: -H(pi).
    quality_term: intercept + quality_slope * pi(Y_w).
    quality: pi(Y_w), the mass on the acceptable set.
    quality_slope: derivative of the KL with respect to that mass, at fixed entropy.
    quality_helps: True if that slope is negative.
  """

  kl: jax.Array
  diversity_term: jax.Array
  quality_term: jax.Array
  quality: jax.Array
  quality_slope: jax.Array
  quality_helps: jax.Array


def alignment_decomposition(
  log_probs: chex.Array, acceptable: chex.Array, *, tolerance: chex.Numeric
) -> AlignmentDecomposition:
  """KL to the ideal policy, decomposed into an entropy term and a term linear in quality.

      pi*            uniform: mass 1 - eps over Y_w, mass eps over the rest Y_l
      KL(pi || pi*)  = -H(pi) - pi(Y_w) log[(1-eps)/|Y_w|] - (1 - pi(Y_w)) log[eps/|Y_l|]
      slope          = log[eps/|Y_l|] - log[(1-eps)/|Y_w|]  < 0   iff   eps < |Y_l| / |Y|

  At fixed entropy, more quality reduces the KL if and only if pi* gives an acceptable response more probability than
  another one. At fixed quality, more entropy always reduces it.

  Source: the claim of the abstract of Pan et al. (arXiv 2602.15894); the formula is a reconstruction.

  Args:
    log_probs: [..., Y] log-probs of the policy, nats.
    acceptable: [..., Y] bool, membership of Y_w, which is neither empty nor everything.
    tolerance: eps in (0, 1), the ideal policy's mass outside Y_w, scalar.

  Returns:
    An AlignmentDecomposition of [...] arrays.
  """
  log_probs, acceptable = jnp.asarray(log_probs), jnp.asarray(acceptable, bool)
  chex.assert_equal_shape([log_probs, acceptable])
  good = jnp.sum(acceptable, axis=-1)
  density_good = (1 - tolerance) / good
  density_rest = tolerance / (acceptable.shape[-1] - good)

  quality = expectation(log_probs, jnp.where(acceptable, 1.0, 0.0))
  diversity_term = -entropy(log_probs)
  quality_term = -xlogy(quality, density_good) - xlogy(1 - quality, density_rest)
  slope = jnp.log(density_rest) - jnp.log(density_good)
  return AlignmentDecomposition(diversity_term + quality_term, diversity_term, quality_term, quality, slope, slope < 0)
