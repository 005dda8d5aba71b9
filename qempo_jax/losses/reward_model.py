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
  """Negative log-likelihood of one preference, with a margin and a pull of the pair's mean toward zero.

      L = -log sigmoid(r_w - r_l - margin) + centring_weight (r_w + r_l)^2

  A preference fixes rewards only up to a constant for each prompt; centring fixes the constant, so that a
  floor on the mean reward means the same on every prompt.

  Source: Bradley and Terry (1952); the margin: Touvron et al., arXiv 2307.09288; centring: Eisenstein et al.,
  arXiv 2312.09244.

  Args:
    chosen_reward: [] reward units.
    rejected_reward: [] reward units.
    margin: [] how clearly the first was preferred, reward units; 0 for none.
    centring_weight: per reward unit squared; 0 for none.

  Returns:
    Scalar loss.

  Raises:
    AssertionError: an input is not a scalar.
  """
  chex.assert_rank([chosen_reward, rejected_reward, margin], 0)
  r_w, r_l, margin = map(at_least_float32, (chosen_reward, rejected_reward, margin))
  return -jax.nn.log_sigmoid(r_w - r_l - margin) + centring_weight * (r_w + r_l) ** 2
