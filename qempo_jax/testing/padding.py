"""Detects losses that read padding, by their gradient under three fillings of the padding."""

from collections.abc import Callable

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from qempo_jax.testing.expectation import Samples
from qempo_jax.testing.expectation import fixed_stats
from qempo_jax.testing.expectation import policy_stats
from qempo_jax.testing.expectation import with_garbage
from qempo_jax.testing.problems import Problem

IGNORED, NAN_SPREADS, COUNTS = "ignored", "NaN spreads", "counts"
NUM_GROUPS = 16


def use_of_padding(loss: Callable[[Samples], Array], problem: Problem, *, group_size: int, tolerance: float) -> str:
  """Compares the gradient of a loss with zeros, finite garbage and NaN in padding, on random groups.

  Args:
    loss: function of `Samples` to a scalar.
    problem: the policy and the rewards.
    group_size: G.
    tolerance: relative difference that counts as none.

  Returns:
    `COUNTS` if finite values change the gradient or have a gradient themselves, `NAN_SPREADS` if only NaN does,
    `IGNORED` otherwise. Groups whose gradient is not finite with zeros are ignored.
  """
  space = problem.policy.space
  groups = np.random.default_rng(0).integers(space.num_sequences, size=(NUM_GROUPS, group_size))
  stats = jnp.concatenate([policy_stats(problem, problem.params[0]), fixed_stats(problem)])
  fillings = jnp.stack([stats, with_garbage(stats, space.mask), jnp.where(space.mask, stats, jnp.nan)])
  mask = jnp.asarray(space.mask)[groups]  # [M, G, T]

  @jax.jit
  @jax.vmap
  def gradients(stats_KxNxT):
    def of_group(group):
      def group_loss(policy_stats):
        rest = stats_KxNxT[3:, group]
        samples = Samples(*policy_stats, *rest, jnp.asarray(space.mask)[group], problem.rewards[0][group])
        return jnp.asarray(loss(samples), policy_stats.dtype)

      return jax.value_and_grad(group_loss)(stats_KxNxT[:3, group])

    return jax.vmap(of_group)(jnp.asarray(groups))

  values, (clean, garbage, nan) = jax.tree.map(np.asarray, gradients(fillings))  # [3, M] and three of [M, 3, G, T]
  known = np.isfinite(clean).all(axis=(1, 2, 3), keepdims=True)
  tokens = np.broadcast_to(np.asarray(mask)[:, None], clean.shape) & known
  size = tolerance * np.linalg.norm(clean[tokens])

  def differs(gradient):
    return not np.linalg.norm(gradient[tokens] - clean[tokens]) <= size

  if differs(garbage) or not np.linalg.norm(garbage[~tokens & known]) <= size:
    return COUNTS
  return NAN_SPREADS if differs(nan) or not np.isfinite(values[2][known.ravel()]).all() else IGNORED
