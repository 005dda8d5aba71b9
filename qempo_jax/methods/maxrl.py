"""MaxRL: rewards relative to their group's mean, which approach maximum likelihood of success."""

import jax
import jax.numpy as jnp

from qempo_jax.constraints import Group
from qempo_jax.masking import masked_mean
from qempo_jax.methods import method


def relative_rewards(group: Group, terms: method.Terms) -> jax.Array:
  """r / mean r over the on-policy responses; unchanged, and then without effect, if that mean is 0."""
  mean = masked_mean(terms.rewards, group.fresh)
  return terms.rewards / jnp.where(mean > 0, mean, 1.0)


def maxrl(*, beta: float = 0.0) -> method.Method:
  """Advantages (r - mean) / mean instead of (r - mean) / std. Source: arXiv 2602.02710 (reconstruction).

  Args:
    beta: weight of an added KL penalty, reward units a nat; 0: none, as in the source.
  """
  return method.Method(rewards=relative_rewards, entropy_weight=0.0, multipliers={"quality": 1.0, "kl": beta})
