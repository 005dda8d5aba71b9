"""What a loss does on average: its gradient's exact mean and variance over every group or pair there is."""

from collections.abc import Callable
from collections.abc import Sequence
import itertools
from typing import NamedTuple

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from qempo_jax.testing.enumerable import Params
from qempo_jax.testing.problems import Problem


class Samples(NamedTuple):
  """What a loss sees of one group of G samples of a prompt; the first three carry gradients.

  Attributes:
    token_log_probs: [G, T] under the current policy, nats, zero on padding.
    token_entropies: [G, T] of the current policy's next-token distributions, nats.
    token_kls: [G, T] of those distributions from the reference's, nats.
    old_token_log_probs: [G, T] under an earlier policy, nats.
    ref_token_log_probs: [G, T] under the reference policy, nats.
    mask: [G, T] True on tokens, EOS included.
    rewards: [G].
  """

  token_log_probs: Array
  token_entropies: Array
  token_kls: Array
  old_token_log_probs: Array
  ref_token_log_probs: Array
  mask: Array
  rewards: Array

  @property
  def log_probs(self) -> Array:
    """[G] sequence log-probs under the current policy, nats."""
    return jnp.sum(self.token_log_probs, axis=-1)

  @property
  def old_log_probs(self) -> Array:
    """[G] sequence log-probs under the earlier policy, nats."""
    return jnp.sum(self.old_token_log_probs, axis=-1)

  @property
  def ref_log_probs(self) -> Array:
    """[G] sequence log-probs under the reference policy, nats."""
    return jnp.sum(self.ref_token_log_probs, axis=-1)

  @property
  def lengths(self) -> Array:
    """[G] tokens, EOS included."""
    return jnp.sum(self.mask, axis=-1)


class Pair(NamedTuple):
  """What a preference loss sees: scalars; the first two carry gradients. Log-probs in nats, lengths in tokens."""

  chosen_log_prob: Array
  rejected_log_prob: Array
  ref_chosen_log_prob: Array
  ref_rejected_log_prob: Array
  chosen_length: Array
  rejected_length: Array


class Moments(NamedTuple):
  """Exact mean of minus each loss's gradient, [K, D], and the trace of its covariance, [K]."""

  mean: Array
  variance: Array


def group_moments(
  losses: Sequence[Callable[[Samples], Array]], problem: Problem, *, group_size: int, behaviour: str
) -> Callable[[Params], Moments]:
  """Moments of minus the gradients of K losses, over all groups of `group_size` samples, averaged over prompts.

  Args:
    losses: K functions of `Samples` to a scalar, compiled together.
    problem: the policy and the rewards.
    group_size: G; the cost grows as N^G.
    behaviour: "policy" samples from the current policy, "old" from the earlier one.

  Returns:
    Jitted function of params. The variance is of one group of one prompt, averaged over prompts.
  """
  space, policy = problem.policy.space, problem.policy
  groups = jnp.asarray(list(itertools.product(range(space.num_sequences), repeat=group_size)))
  old, ref = policy.token_log_probs(problem.old_params), policy.token_log_probs(problem.ref_params)

  def stats(params):
    return jnp.stack(
      [
        policy.token_log_probs(params),
        policy.token_entropies(params),
        policy.token_kls(params, ref),
      ]
    )

  @jax.jit
  def moments(params: Params) -> Moments:
    values, jacobian = _value_and_jacobian(stats, params)
    sampler = policy.log_probs(params if behaviour == "policy" else problem.old_params)
    weights = jnp.exp(jnp.sum(sampler[groups], axis=-1))

    def one_prompt(rewards):
      def one_group(group):
        def group_loss(stats_of_group):
          rest = (old[group], ref[group], jnp.asarray(space.mask)[group], rewards[group])
          samples = Samples(*stats_of_group, *rest)
          return jnp.stack([loss(samples) for loss in losses])

        return -jnp.einsum(
          "lkgt,kgtd->ld", jax.jacrev(group_loss)(values[:, group]), jacobian[:, group]
        )

      return _moments(jax.lax.map(one_group, groups, batch_size=512), weights)

    return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(one_prompt, problem.rewards))

  return moments


def pair_moments(
  losses: Sequence[Callable[[Pair], Array]], problem: Problem
) -> Callable[[Params], Moments]:
  """Moments of minus the gradients of K losses over all pairs from the reference, labelled by Bradley-Terry.

  Args:
    losses: K functions of a `Pair` to a scalar, compiled together.
    problem: the policy, the reference and the rewards; only the first prompt counts.

  Returns:
    Jitted function of params.
  """
  policy, lengths = problem.policy, jnp.asarray(problem.policy.space.lengths)
  n = policy.space.num_sequences
  chosen, rejected = (jnp.asarray(x) for x in np.indices((n, n)).reshape(2, -1))
  ref, rewards = problem.ref_log_probs, problem.rewards[0]
  drawn = jnp.exp(ref[chosen] + ref[rejected])
  weights = drawn * jax.nn.sigmoid(rewards[chosen] - rewards[rejected])

  @jax.jit
  def moments(params: Params) -> Moments:
    log_probs, jacobian = _value_and_jacobian(policy.log_probs, params)

    def one_pair(w, v):
      def pair_loss(x):
        pair = Pair(x[0], x[1], ref[w], ref[v], lengths[w], lengths[v])
        return jnp.stack([loss(pair) for loss in losses])

      own = jnp.stack([w, v])
      return -jax.jacrev(pair_loss)(log_probs[own]) @ jacobian[own]

    return _moments(jax.vmap(one_pair)(chosen, rejected), weights / jnp.sum(weights))

  return moments


def flat_gradient(objective: Callable[[Params], Array], params: Params) -> Array:
  """Gradient as one vector, [D]."""
  return ravel_pytree(jax.grad(objective)(params))[0]


def _value_and_jacobian(f: Callable[[Params], Array], params: Params) -> tuple[Array, Array]:
  flat, unravel = ravel_pytree(params)
  return f(params), jax.jacrev(lambda x: f(unravel(x)))(flat)


def _moments(gradients: Array, weights: Array) -> Moments:
  """Moments from [M, K, D] gradients and [M] weights that sum to one."""
  mean = jnp.tensordot(weights, gradients, axes=1)
  return Moments(mean, weights @ jnp.sum(jnp.square(gradients - mean), axis=-1))
