"""DARLING's product: each reward times the response's mean distance from the others in its group."""

import chex
import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax import advantages
from qempo_jax.constraints import Group
from qempo_jax.masking import masked
from qempo_jax.masking import masked_group
from qempo_jax.methods import method
from qempo_jax.methods.setpo import token_similarities


def quality_times_diversity(rewards: Array, distances: Array, mask: Array | None = None) -> Array:
  """Each reward times the mean distance to the other members of its group, as in DARLING.

      r'_k = r_k 1/(G-1) sum_{j != k} d(y_k, y_j)

  Rewards should be >= 0: repetition would improve a negative one.

  Source: Li et al., "Jointly reinforcing diversity and quality", arXiv 2509.02534, with a learned classifier as d;
  reconstruction, without its rescaling of the diversity.

  Args:
    rewards: [group] rewards, in any unit u.
    distances: [group, group] in [0, 1]; the diagonal is ignored.
    mask: [group] True on members that count; None: all.

  Returns:
    [group] detached rewards, unit u; zero for a group of one.

  Raises:
    AssertionError: shapes do not fit.
  """
  r, mask = masked_group(mask, rewards)
  chex.assert_shape(distances, (r.shape[0], r.shape[0]))
  others = mask[:, None] & mask[None] & ~jnp.eye(r.shape[0], dtype=bool)
  total = jnp.sum(masked(distances, others), axis=-1)
  return jax.lax.stop_gradient(r * total / jnp.maximum(jnp.sum(mask) - 1, 1))


def diverse_rewards(group: Group, terms: method.Terms) -> jax.Array:
  """`quality_times_diversity` with distances 1 - `token_similarities`."""
  return quality_times_diversity(terms.rewards, 1 - group.features["similarities"], group.fresh)


def darling(*, beta: float = 0.0) -> method.Method:
  """max E[r d - beta KL] with d a response's mean distance from its group, and the group's mean as baseline.

  Source: Li et al., arXiv 2509.02534, whose distance is a learned classifier; reconstruction.

  Args:
    beta: weight of the KL penalty, reward units a nat; 0: no penalty.
  """
  return method.Method(
    baseline=advantages.group_mean,
    rewards=diverse_rewards,
    features=lambda tokens, mask: {"similarities": token_similarities(tokens, mask)},
    entropy_weight=0.0,
    multipliers={"quality": 1.0, "kl": beta},
  )
