"""MARA: RLHF on rewards that make the good responses of a group equally likely."""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.constraints import Group
from qempo_jax.masking import masked_group
from qempo_jax.methods import method


def mara_rewards(
  rewards: Array,
  ref_log_probs: Array,
  mask: Array | None = None,
  *,
  min_reward: float | Array,
  beta: float | Array,
) -> Array:
  """Mode-anchored reward augmentation: the optimum of RLHF is flat over the group's good members.

      z = argmax of log q(y_k) over r_k >= min_reward
      r'_k = r(z) + beta (log q(z) - log q(y_k))   if r_k >= min_reward,   r_k otherwise

  q exp(r' / beta) is then equal for all good members. Train on r' with a KL penalty of weight beta.

  Source: GX-Chen et al., "KL-regularized reinforcement learning is designed to mode collapse",
  arXiv 2510.20817; reconstruction of its augmented reward.

  Args:
    rewards: [group] rewards, in any unit u.
    ref_log_probs: [group] sequence log-probs under the reference policy, nats.
    mask: [group] True on members that count; None: all.
    min_reward: least reward of a good member, unit u.
    beta: weight of the KL penalty used in training, u per nat.

  Returns:
    [group] detached rewards, unit u; unchanged if no member is good.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  r, log_q, mask = masked_group(mask, rewards, ref_log_probs)
  good = mask & (r >= min_reward)
  z = jnp.argmax(jnp.where(good, log_q, -jnp.inf))
  return jax.lax.stop_gradient(jnp.where(good, r[z] + beta * (log_q[z] - log_q), r))


def anchored_rewards(group: Group, terms: method.Terms, *, good_reward: float) -> jax.Array:
  """`mara_rewards` with the run's KL weight; unchanged rewards if no reward has a price."""
  weight = jnp.where(terms.reward_weight > 0, terms.reward_weight, 1.0)
  return mara_rewards(
    terms.rewards,
    group.ref_log_probs,
    group.fresh,
    min_reward=good_reward,
    beta=terms.multipliers.get("kl", 0.0) / weight,
  )


def mara(*, beta: float, good_reward: float = 1.0) -> method.Method:
  """max E[r'] - beta KL(pi || q) with r'(y) = r(z) + beta (log q(z) - log q(y)) for good y, z the likeliest good one.

  On good responses beta log q cancels. Up to a constant of the group, this is the objective of QEMPO with a coherence
  constraint at lambda = 1 / beta. The loss is not normalised: at its optimum the shaped rewards are flat, and division
  by their deviation would amplify noise alone.

  Source: GX-Chen et al., arXiv 2510.20817 (reconstruction).

  Args:
    beta: weight of the KL penalty, reward units a nat.
    good_reward: least reward of a good response.
  """
  rewards = functools.partial(anchored_rewards, good_reward=good_reward)
  return method.Method(rewards=rewards, entropy_weight=0.0, multipliers={"quality": 1.0, "kl": beta})
