"""Rewards of neighbouring methods that ask for diversity in other ways: baselines, one group a call, detached."""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from qempo_jax.masking import at_least_float32

_sg = jax.lax.stop_gradient


def mara_rewards(
  rewards: Array, ref_log_probs: Array, *, min_reward: float | Array, beta: float | Array
) -> Array:
  """Mode-anchored reward augmentation: RLHF on these rewards is flat over the group's good members.

      z = argmax of log q(y_k) over r_k >= min_reward
      r'_k = r(z) + beta (log q(z) - log q(y_k))   if r_k >= min_reward,   r_k otherwise

  so that q exp(r' / beta) is the same for every good member. Train on r' with a KL penalty of weight beta.

  Source: GX-Chen et al., "KL-regularized reinforcement learning is designed to mode collapse",
  arXiv 2510.20817; reconstruction of its augmented reward.

  Args:
    rewards: [group] any unit u.
    ref_log_probs: [group] sequence log-probs under the reference policy, nats.
    min_reward: floor of the good set, unit u.
    beta: weight of the KL penalty used in training, u per nat.

  Returns:
    [group] detached rewards, unit u; the rewards themselves where no member is good.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  chex.assert_rank([rewards, ref_log_probs], 1)
  chex.assert_equal_shape([rewards, ref_log_probs])
  r, log_q = map(at_least_float32, (rewards, ref_log_probs))
  good = r >= min_reward
  z = jnp.argmax(jnp.where(good, log_q, -jnp.inf))
  return _sg(jnp.where(good, r[z] + beta * (log_q[z] - log_q), r))


def quality_times_diversity(rewards: Array, distances: Array) -> Array:
  """Each reward times the mean distance to the other members of its group, as in DARLING.

      r'_k = r_k 1/(G-1) sum_{j != k} d(y_k, y_j)

  Meant for rewards >= 0: a negative one would be improved by repetition.

  Source: Li et al., "Jointly reinforcing diversity and quality", arXiv 2509.02534, where d says whether a
  learned classifier tells two responses apart; reconstruction, without its rescaling of the diversity.

  Args:
    rewards: [group] any unit u.
    distances: [group, group] in [0, 1]; the diagonal is ignored.

  Returns:
    [group] detached rewards, unit u; zero for a group of one.

  Raises:
    AssertionError: shapes do not fit.
  """
  chex.assert_rank([rewards, distances], [1, 2])
  group = rewards.shape[0]
  chex.assert_shape(distances, (group, group))
  r, d = map(at_least_float32, (rewards, distances))
  others = jnp.sum(jnp.where(jnp.eye(group, dtype=bool), 0.0, d), axis=-1)
  return _sg(r * others / max(group - 1, 1))
