"""Clipped policy-gradient losses: one trajectory a call, `jax.vmap` outside.

Importance ratios come at two levels, which are not interchangeable:

  token level     rho_t = pi(y_t | y_<t) / pi_old(y_t | y_<t)   `ppo_clip_loss`, `grpo_loss`, `dr_grpo_loss`
                  ignores that the prefix was drawn from pi_old: biased, low variance;
  sequence level  rho = prod_t rho_t                            `sequence_clip_loss`
                  exact before clipping, variance grows with length;
  its geometric mean rho^(1/|y|)                                `gspo_loss`
                  a tempered ratio: biased, low variance.

Clipping also removes entropy gradients that a shaped reward carries. All ratios are 1 on-policy, and losses with the
same normalisation then have the same gradient.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.losses.policy_gradient import checked
from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked_mean
from qempo_jax.masking import masked_sum

_sg = jax.lax.stop_gradient
_MAX_LOG_RATIO = 20.0  # Ratios beyond 5e8 have no gradient, so that squared gradients stay finite in float32.


def ppo_clip_loss(
  token_log_probs: Array,
  old_token_log_probs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Clipped surrogate with token-level ratios and asymmetric bounds, summed over tokens.

      L = -sum_t mask_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)

  Source: Schulman et al., PPO, arXiv 1707.06347; the higher upper bound: DAPO, arXiv 2503.14476.

  Args:
    token_log_probs: [T] under the current policy, nats.
    old_token_log_probs: [T] under the behaviour policy, nats; detached inside.
    advantages: [] or [T] detached inside.
    mask: [T] True on response tokens, EOS included.
    clip_low: largest fall of the ratio below 1 with a gradient.
    clip_high: largest rise of the ratio above 1 with a gradient.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  log_pi, log_old, a = checked(advantages, mask, token_log_probs, old_token_log_probs)
  rho = _ratio(log_pi - _sg(log_old))
  return -masked_sum(_pessimistic(rho, _sg(a), clip_low, clip_high), mask)


def grpo_loss(
  token_log_probs: Array,
  old_token_log_probs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """`ppo_clip_loss` divided by the sequence's length: length-biased, for comparison.

      L = ppo_clip_loss / |y|

  A long wrong answer is punished less per token than a short one, so the expected gradient is not that of the
  objective. Without a baseline the stationary point is biased too.

  Source: Shao et al., GRPO, arXiv 2402.03300, without its KL term.

  Args:
    token_log_probs: [T] under the current policy, nats.
    old_token_log_probs: [T] under the behaviour policy, nats; detached inside.
    advantages: [] or [T] detached inside.
    mask: [T] True on response tokens, EOS included.
    clip_low: largest fall of the ratio below 1 with a gradient.
    clip_high: largest rise of the ratio above 1 with a gradient.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  loss = ppo_clip_loss(token_log_probs, old_token_log_probs, advantages, mask, clip_low=clip_low, clip_high=clip_high)
  return loss / jnp.maximum(masked_sum(jnp.ones_like(token_log_probs), mask), 1)


def dr_grpo_loss(
  token_log_probs: Array,
  old_token_log_probs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
  max_tokens: int,
) -> Array:
  """`ppo_clip_loss` divided by a constant length: no length bias. Use it with `advantages.group_mean`.

      L = ppo_clip_loss / max_tokens

  Source: Liu et al., Dr. GRPO, arXiv 2503.20783.

  Args:
    token_log_probs: [T] under the current policy, nats.
    old_token_log_probs: [T] under the behaviour policy, nats; detached inside.
    advantages: [] or [T] detached inside.
    mask: [T] True on response tokens, EOS included.
    clip_low: largest fall of the ratio below 1 with a gradient.
    clip_high: largest rise of the ratio above 1 with a gradient.
    max_tokens: divisor, the same for every sequence, tokens.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  loss = ppo_clip_loss(token_log_probs, old_token_log_probs, advantages, mask, clip_low=clip_low, clip_high=clip_high)
  return loss / max_tokens


def sequence_clip_loss(
  token_log_probs: Array,
  old_token_log_probs: Array,
  advantage: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Clipped surrogate with the whole sequence's importance ratio.

      L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   rho = pi(y) / pi_old(y)

  Source: PPO, arXiv 1707.06347, with a sequence as one action.

  Args:
    token_log_probs: [T] under the current policy, nats.
    old_token_log_probs: [T] under the behaviour policy, nats; detached inside.
    advantage: [] detached inside.
    mask: [T] True on response tokens, EOS included.
    clip_low: largest fall of the ratio below 1 with a gradient; infinite: no clipping.
    clip_high: largest rise of the ratio above 1 with a gradient; infinite: no clipping.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  chex.assert_rank(advantage, 0)
  log_pi, log_old, _ = checked(advantage, mask, token_log_probs, old_token_log_probs)
  rho = _ratio(jnp.sum(log_pi - _sg(log_old)))
  loss = -_pessimistic(rho, _sg(at_least_float32(advantage)), clip_low, clip_high)
  return jnp.where(jnp.any(mask), loss, 0.0)


def gspo_loss(
  token_log_probs: Array,
  old_token_log_probs: Array,
  advantage: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Clipped surrogate with the geometric mean of the token ratios: length-normalised, for comparison.

      L = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),   s = (pi(y) / pi_old(y))^(1/|y|)

  Source: Zheng et al., GSPO, arXiv 2507.18071.

  Args:
    token_log_probs: [T] under the current policy, nats.
    old_token_log_probs: [T] under the behaviour policy, nats; detached inside.
    advantage: [] detached inside.
    mask: [T] True on response tokens, EOS included.
    clip_low: largest fall of the ratio below 1 with a gradient.
    clip_high: largest rise of the ratio above 1 with a gradient.

  Returns:
    Scalar loss; zero for an all-masked row.

  Raises:
    AssertionError: shapes do not fit.
  """
  chex.assert_rank(advantage, 0)
  log_pi, log_old, _ = checked(advantage, mask, token_log_probs, old_token_log_probs)
  s = _ratio(masked_mean(log_pi - _sg(log_old), mask))
  loss = -_pessimistic(s, _sg(at_least_float32(advantage)), clip_low, clip_high)
  return jnp.where(jnp.any(mask), loss, 0.0)


def _ratio(log_ratio: Array) -> Array:
  return jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO))


def _pessimistic(ratio: Array, advantage: Array, clip_low: float, clip_high: float) -> Array:
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  return jnp.minimum(ratio * advantage, clipped * advantage)
