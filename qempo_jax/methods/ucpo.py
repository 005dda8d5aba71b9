"""UCPO: GRPO that redistributes the correct responses' advantage towards rarer ones."""

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


def ucpo_advantages(
  advantages: Array,
  log_probs: Array,
  correct: Array,
  mask: Array | None = None,
  *,
  tau: float | Array,
) -> Array:
  """Uniform-correct policy optimisation: redistributes the correct responses' advantage towards rarer ones.

      q_k = pi(y_k) / sum_{j correct} pi(y_j)
      w_k = (1 - tau) / n + tau (1 / q_k) / sum_{j correct} (1 / q_j)
      A'_k = n w_k mean_{j correct} A_j   if k is correct,   A_k otherwise

  with n correct responses, whose advantages keep their sum. tau = 0 is GRPO. tau = 1 cancels the sampling weight
  pi(y_k), so that all sampled correct responses get equal steps.

  Source: Lochab, Li, Zhang, "Uniform-correct policy optimization", arXiv 2605.00365; the formula from the
  authors' published code (AnamikaLochab/UCPO, its advantage estimator `iq`), which uses tau = 0.2, GRPO's
  std-normalised advantages and log-probs *per token*, and floors q at 1e-6; there is no floor here.

  Args:
    advantages: [group] of a base method, equal for all correct responses; any unit u.
    log_probs: [group] log-probs under the behaviour policy, nats; sequence sums give q, means over tokens the
      authors' flatter version.
    correct: [group] True on correct responses.
    mask: [group] True on members that count; None: all.
    tau: in [0, 1].

  Returns:
    [group] detached advantages, unit u; unchanged in a group without correct responses.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  a, log_pi, mask = masked_group(mask, advantages, log_probs)
  chex.assert_equal_shape([correct, mask])
  correct = mask & jnp.asarray(correct).astype(bool)
  n = jnp.sum(correct)
  inverse = jax.nn.softmax(-log_pi, where=correct)
  weights = (1 - tau) / jnp.maximum(n, 1) + tau * inverse
  return jax.lax.stop_gradient(jnp.where(correct, n * weights * masked_mean(a, correct), a))


def redistribution(
  advantages: jax.Array, group: Group, terms: method.Terms, *, tau: float, good_reward: float, reward: str
):
  """`ucpo_advantages` minus the given advantages."""
  correct = group.rewards[reward] >= good_reward
  new = ucpo_advantages(advantages, terms.log_probs, correct, group.fresh, tau=tau)
  return new - advantages


def ucpo(
  *, tau: float, beta: float = 0.04, good_reward: float = 1.0, reward: str = "reward", min_std: float = 1e-2
) -> method.Method:
  """GRPO with uniform-correct advantages. Source: Lochab, Li, Zhang, arXiv 2605.00365.

  Args:
    tau: in [0, 1]; 0 is GRPO, 1 gives equal steps to all sampled correct responses.
    beta: weight of the KL penalty, reward units a nat.
    good_reward: least reward of a correct response.
    reward: name of the reward that `good_reward` applies to.
    min_std: least standard deviation, as in `grpo`.
  """
  change = functools.partial(redistribution, tau=tau, good_reward=good_reward, reward=reward)
  return dataclasses.replace(grpo(beta=beta, min_std=min_std), change=change)
