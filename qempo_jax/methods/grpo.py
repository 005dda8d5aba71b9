"""GRPO with a KL penalty in the reward, with or without a fixed bonus on next-token entropies."""

import functools

import jax
import jax.numpy as jnp

from qempo_jax import advantages
from qempo_jax.masking import masked_mean
from qempo_jax.masking import masked_sum
from qempo_jax.methods import method


def population_std(shaped: jax.Array, mask: jax.Array, *, min_std: float) -> jax.Array:
  """Standard deviation of a group's shaped rewards, at least `min_std`."""
  centred = shaped - masked_mean(shaped, mask)
  return jnp.maximum(jnp.sqrt(masked_mean(centred**2, mask)), min_std)


def token_entropy_bonus(stats, group, *, weight: float) -> jax.Array:
  """-weight times the mean over on-policy responses of the summed next-token entropies."""
  return -weight * masked_mean(jax.vmap(masked_sum)(stats.entropy, group.mask), group.fresh)


def grpo(*, beta: float, min_std: float = 1e-2, token_entropy_weight: float = 0.0) -> method.Method:
  """max E[r] - beta KL(pi || q), the penalty in the reward; a group's loss is divided by its shaped rewards' deviation.

  Source: Shao et al., arXiv 2402.03300 (beta = 0.04 there).

  Args:
    beta: weight of the KL penalty, reward units a nat.
    min_std: least standard deviation, in units of the shaped reward.
    token_entropy_weight: weight of a bonus on next-token entropies, added after normalisation; 0: none. It is biased,
      see `losses.token_entropy_bonus_loss`.
  """
  bonus = functools.partial(token_entropy_bonus, weight=token_entropy_weight)
  return method.Method(
    baseline=advantages.group_mean,
    scale=functools.partial(population_std, min_std=min_std),
    extra=method.no_extra if isinstance(token_entropy_weight, float) and not token_entropy_weight else bonus,
    entropy_weight=0.0,
    multipliers={"quality": 1.0, "kl": beta},
  )
