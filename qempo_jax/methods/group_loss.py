"""The online loss of one group of responses to a prompt, for any constraints and method."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp

from qempo_jax import constraints as constraint_lib
from qempo_jax.constraints import Constraint
from qempo_jax.constraints import Group
from qempo_jax.losses.policy_gradient import policy_gradient_loss
from qempo_jax.masking import masked
from qempo_jax.masking import masked_mean
from qempo_jax.methods.method import Method
from qempo_jax.methods.method import Prices
from qempo_jax.methods.method import Terms
from qempo_jax.token_stats import TokenStats


def group_loss(
  stats: TokenStats,
  group: Group,
  prices: Prices,
  constraints: Mapping[str, Constraint],
  method: Method,
  *,
  replay_weight: chex.Numeric,
) -> jax.Array:
  """Loss of one group; with the default method its gradient is minus the Lagrangian's over (h + sum of multipliers).

      s_k = [ sum_i sense_i m_i v_i(y_k) - h log pi(y_k) ] / (h + sum_i m_i)                 detached
      L   = mean_fresh w_k A_k (-log pi(y_k)) + replay_weight / |fresh| sum_replayed (s_k - mean_fresh s) (-log pi(y_k))

  A is the method's baseline applied to s, and w are importance weights. The second sum is trajectory balance. At the
  optimum every s equals log Z, which the on-policy responses estimate, so the sum is exact off-policy.

  Source: Lagrangian of the programs of arXiv 2602.15894 (reconstruction); trajectory balance: arXiv 2201.13259.

  Args:
    stats: [G, T] log-probs and next-token entropies of the responses under the current policy, nats, with gradient.
    group: the responses.
    prices: entropy weight h and multipliers by name, one for each constraint.
    constraints: by name.
    method: hooks that differ from QEMPO's; see `Method`.
    replay_weight: weight of a replayed response; an on-policy one has 1.

  Returns:
    Scalar.

  Raises:
    AssertionError: shapes do not fit, or a constraint has no multiplier.
  """
  chex.assert_equal_shape([stats.log_prob, stats.entropy, group.mask])
  chex.assert_equal_shape([group.fresh, group.replayed, group.weight, group.ref_log_probs, *group.rewards.values()])
  terms = lagrangian_terms(stats, group, prices, constraints)
  terms = terms._replace(rewards=method.rewards(group, terms))
  shaped = terms.reward_weight * terms.rewards + terms.rest - terms.log_prob_weight * terms.log_probs
  shaped = jax.lax.stop_gradient(shaped / terms.divisor)
  credit, entropy_losses = method.entropy(stats, group, terms, terms.log_prob_weight / terms.divisor)
  spread = method.scale(shaped, group.fresh)
  reward_advantages = method.baseline(terms.reward_weight / terms.divisor * terms.rewards, group.fresh) / spread
  changes = method.change(reward_advantages, group, terms)
  advantages = method.baseline(shaped + credit, group.fresh) + spread * changes

  sequence_losses = jax.vmap(policy_gradient_loss)
  losses = (sequence_losses(stats.log_prob, advantages, group.mask) + entropy_losses) * group.weight
  log_z = masked_mean(shaped, group.fresh)
  replayed = jnp.sum(sequence_losses(stats.log_prob, shaped - log_z, group.mask) * group.replayed)
  balance = jnp.where(jnp.any(group.fresh), replayed / jnp.maximum(jnp.sum(group.fresh), 1), 0.0)
  return (masked_mean(losses, group.fresh) + replay_weight * balance) / spread + method.extra(stats, group)


def lagrangian_terms(stats: TokenStats, group: Group, prices: Prices, constraints: Mapping[str, Constraint]) -> Terms:
  """Parts of the Lagrangian's shaped reward; a response without a value gets its group's mean."""
  entropy_weight, multipliers = prices
  missing = sorted(set(constraints) - set(multipliers))
  assert not missing, f"no multiplier for constraint {missing[0]!r}: prices name {', '.join(sorted(multipliers))}"
  log_probs = jax.lax.stop_gradient(jnp.sum(masked(stats.log_prob, group.mask), axis=-1))
  rewards = rest = jnp.zeros_like(log_probs)
  reward_weight, log_prob_weight = jnp.zeros(()), jnp.asarray(entropy_weight, log_probs.dtype)
  divisor = log_prob_weight
  for name, constraint in constraints.items():
    multiplier = multipliers[name]
    value = constraint_lib.fill_unscored(constraint.value(group), group.fresh)
    if constraint.sense == constraint_lib.FLOOR and not constraint.log_prob:
      rewards += multiplier * value
      reward_weight += multiplier
    else:
      rest += constraint.sense * multiplier * value
      log_prob_weight -= constraint.sense * multiplier * constraint.log_prob
    divisor += multiplier
  rewards = jnp.where(reward_weight > 0, rewards / jnp.where(reward_weight > 0, reward_weight, 1.0), 0.0)
  terms = Terms(log_probs, rewards, reward_weight, rest, log_prob_weight, divisor, multipliers)
  return jax.tree.map(jax.lax.stop_gradient, terms)
