"""Reward-model loss: Bradley-Terry with a margin and centring; one pair a call, `jax.vmap` outside."""

import chex
import jax
from jax import Array

from qempo_jax.masking import at_least_float32


def bradley_terry_loss(
  chosen_reward: Array,
  rejected_reward: Array,
  margin: Array,
  *,
  centring_weight: float | Array,
) -> Array:
  """Negative log-likelihood of one preference, with a margin and centring of the pair's rewards at zero.

      L = -log sigmoid(r_w - r_l - margin) + centring_weight (r_w + r_l)^2

  A preference determines rewards only up to a constant for each prompt. Centring fixes that constant, so that a
  floor on the mean reward has the same meaning on every prompt.

  Source: Bradley and Terry (1952); the margin: Touvron et al., arXiv 2307.09288; centring: Eisenstein et al.,
  arXiv 2312.09244.

  Args:
    chosen_reward: [] reward of the preferred response, reward units.
    rejected_reward: [] reward of the other response, reward units.
    margin: [] least reward difference that the preference asks for, reward units; 0: no margin.
    centring_weight: weight of the centring term, per reward unit squared; 0: no centring.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  chex.assert_rank([chosen_reward, rejected_reward, margin], 0)
  r_w, r_l, margin = map(at_least_float32, (chosen_reward, rejected_reward, margin))
  return -jax.nn.log_sigmoid(r_w - r_l - margin) + centring_weight * (r_w + r_l) ** 2
