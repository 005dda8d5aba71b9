"""Baselines that ask for diversity in other ways: detached rewards and advantages, one group a call.

A mask leaves members out of the group (padding, or samples that could not be
scored): they count in no argmax, mean or set, and get zero. The fixed token-entropy bonus, the other usual
baseline, is `losses.token_entropy_bonus_loss`.
"""

from collections.abc import Callable
import functools

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked
from qempo_jax.masking import masked_mean

_sg = jax.lax.stop_gradient


def mara_rewards(
  rewards: Array,
  ref_log_probs: Array,
  mask: Array | None = None,
  *,
  min_reward: float | Array,
  beta: float | Array,
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
    mask: [group] False leaves a member out; None keeps all.
    min_reward: floor of the good set, unit u.
    beta: weight of the KL penalty used in training, u per nat.

  Returns:
    [group] detached rewards, unit u; the rewards themselves where no member is good.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  r, log_q, mask = _group(mask, rewards, ref_log_probs)
  good = mask & (r >= min_reward)
  z = jnp.argmax(jnp.where(good, log_q, -jnp.inf))
  return _sg(jnp.where(good, r[z] + beta * (log_q[z] - log_q), r))


def quality_times_diversity(rewards: Array, distances: Array, mask: Array | None = None) -> Array:
  """Each reward times the mean distance to the other members of its group, as in DARLING.

      r'_k = r_k 1/(G-1) sum_{j != k} d(y_k, y_j)

  Meant for rewards >= 0: a negative one would be improved by repetition.

  Source: Li et al., "Jointly reinforcing diversity and quality", arXiv 2509.02534, where d says whether a
  learned classifier tells two responses apart; reconstruction, without its rescaling of the diversity.

  Args:
    rewards: [group] any unit u.
    distances: [group, group] in [0, 1]; the diagonal is ignored.
    mask: [group] False leaves a member out; None keeps all.

  Returns:
    [group] detached rewards, unit u; zero for a group of one.

  Raises:
    AssertionError: shapes do not fit.
  """
  r, mask = _group(mask, rewards)
  chex.assert_shape(distances, (r.shape[0], r.shape[0]))
  others = mask[:, None] & mask[None] & ~jnp.eye(r.shape[0], dtype=bool)
  total = jnp.sum(masked(distances, others), axis=-1)
  return _sg(r * total / jnp.maximum(jnp.sum(mask) - 1, 1))


def leave_one_out_set_diversity(diversity: Callable[[Array], Array], mask: Array) -> Array:
  r"""What each member adds to the diversity of its set.

      s_k = D(S) - D(S \ {k})

  Zero where every member is the same, whatever D is, as long as D does not depend on the number of copies.
  It is not centred: to use it as an advantage, take `advantages.leave_one_out` of it, or of the reward it
  is added to.

  Args:
    diversity: D, of any unit: maps a [group] boolean mask, the set, to a scalar; called under `jax.vmap`.
    mask: [group] True on the members of S.

  Returns:
    [group] detached, unit of D; zero outside S, and for a member alone in S: D of the empty set is not
    defined.

  Raises:
    AssertionError: the mask is not of rank 1.
  """
  chex.assert_rank(mask, 1)
  mask = jnp.asarray(mask).astype(bool)
  without = mask[None] & ~jnp.eye(mask.shape[0], dtype=bool)
  marginal = at_least_float32(diversity(mask)) - jax.vmap(diversity)(without)
  return _sg(masked(marginal, mask & (jnp.sum(mask) > 1)))


def kernel_set_diversity(similarities: Array, mask: Array) -> Array:
  """SetPO's diversity of a set: how little of it resembles each of its members, with diminishing returns.

      D(S) = 1/|S| sum_{i in S} g(1/|S| sum_{j in S} k_ij),   g(x) = -log(1 + x)

  It is -log 2 where all members are the same and tends to 0 as they grow many and different.

  Source: Li et al., "SetPO: Set-level policy optimization for diversity-preserving LLM reasoning", arXiv
  2602.01062; the formula as restated by others, the paper's body was not at hand. There k is the cosine of
  embeddings of the responses.

  Args:
    similarities: [group, group] symmetric, in [0, 1], 1 on the diagonal; clip a cosine at 0.
    mask: [group] True on the members of S.

  Returns:
    Scalar, no unit; zero for an empty set.

  Raises:
    AssertionError: shapes do not fit.
  """
  (mask,) = _group(mask)
  chex.assert_shape(similarities, (mask.shape[0], mask.shape[0]))
  similarities = masked(similarities, mask[:, None] & mask[None])
  mass = jax.vmap(masked_mean, (0, None))(similarities, mask)
  return masked_mean(-jnp.log1p(mass), mask)


def setpo_rewards(similarities: Array, mask: Array | None = None) -> Array:
  r"""SetPO's diversity credit: what each response adds to the diversity of its group.

      s_k = D(S) - D(S \ {k}),   D of `kernel_set_diversity`

  SetPO adds lambda s_k to a group-normalised advantage, without centring s_k.

  Source: Li et al., arXiv 2602.01062, as `kernel_set_diversity` says.

  Args:
    similarities: [group, group] symmetric, in [0, 1], 1 on the diagonal; clip a cosine at 0.
    mask: [group] False leaves a member out; None keeps all.

  Returns:
    [group] detached credits, no unit; zero where all members are the same, and for a group of one.

  Raises:
    AssertionError: shapes do not fit.
  """
  mask = jnp.ones(jnp.shape(similarities)[0], bool) if mask is None else mask
  return leave_one_out_set_diversity(functools.partial(kernel_set_diversity, similarities), mask)


def ucpo_advantages(
  advantages: Array,
  log_probs: Array,
  correct: Array,
  mask: Array | None = None,
  *,
  tau: float | Array,
) -> Array:
  """Uniform-correct policy optimisation: shares the correct responses' advantage out towards rarer ones.

      q_k = pi(y_k) / sum_{j correct} pi(y_j)
      w_k = (1 - tau) / n + tau (1 / q_k) / sum_{j correct} (1 / q_j)
      A'_k = n w_k mean_{j correct} A_j   if k is correct,   A_k otherwise

  with n correct responses, whose advantages keep their sum. tau = 0 is GRPO; tau = 1 undoes the factor
  pi(y_k) with which sampling weights each, so that equal steps go to all the correct responses seen.

  Source: Lochab, Li, Zhang, "Uniform-correct policy optimization", arXiv 2605.00365; the formula from the
  authors' published code (AnamikaLochab/UCPO, its advantage estimator `iq`), which uses tau = 0.2, GRPO's
  std-normalised advantages and log-probs *per token*, and floors q at 1e-6; there is no floor here.

  Args:
    advantages: [group] of a base method, the same for all correct responses there; any unit u.
    log_probs: [group] log-probs of the policy that sampled, nats; sums over the sequence give q itself, means
      over its tokens the authors' flatter version.
    correct: [group] True on correct responses.
    mask: [group] False leaves a member out; None keeps all.
    tau: in [0, 1].

  Returns:
    [group] detached advantages, unit u; unchanged in a group without correct responses.

  Raises:
    AssertionError: the arrays are not of rank 1 or differ in shape.
  """
  a, log_pi, mask = _group(mask, advantages, log_probs)
  chex.assert_equal_shape([correct, mask])
  correct = mask & jnp.asarray(correct).astype(bool)
  n = jnp.sum(correct)
  inverse = jax.nn.softmax(-log_pi, where=correct)
  weights = (1 - tau) / jnp.maximum(n, 1) + tau * inverse
  return _sg(jnp.where(correct, n * weights * masked_mean(a, correct), a))


def _group(mask: Array | None, *arrays: Array) -> tuple[Array, ...]:
  """Static contracts, then zeros outside the mask; the mask itself comes last."""
  mask = jnp.ones(jnp.shape(arrays[0]), bool) if mask is None else jnp.asarray(mask).astype(bool)
  chex.assert_rank([mask, *arrays], 1)
  chex.assert_equal_shape([mask, *arrays])
  return (*(masked(x, mask) for x in arrays), mask)
