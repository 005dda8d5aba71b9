"""Exact mean and variance of a loss's gradient over all groups or pairs."""

from collections.abc import Callable
from collections.abc import Sequence
import itertools
from typing import NamedTuple

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from qempo_jax.masking import masked
from qempo_jax.testing.enumerable import Params
from qempo_jax.testing.problems import Problem


class Samples(NamedTuple):
  """Input of a loss: one group of G samples of a prompt; the first three fields carry gradients.

  Padding holds arbitrary finite values, as in training; the properties mask it.

  Attributes:
    token_log_probs: [G, T] under the current policy, nats.
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
    return jnp.sum(masked(self.token_log_probs, self.mask), axis=-1)

  @property
  def old_log_probs(self) -> Array:
    """[G] sequence log-probs under the earlier policy, nats."""
    return jnp.sum(masked(self.old_token_log_probs, self.mask), axis=-1)

  @property
  def ref_log_probs(self) -> Array:
    """[G] sequence log-probs under the reference policy, nats."""
    return jnp.sum(masked(self.ref_token_log_probs, self.mask), axis=-1)

  @property
  def lengths(self) -> Array:
    """[G] tokens, EOS included."""
    return jnp.sum(self.mask, axis=-1)


class Pair(NamedTuple):
  """Input of a preference loss: scalars; the first two carry gradients. Log-probs in nats, lengths in tokens."""

  chosen_log_prob: Array
  rejected_log_prob: Array
  ref_chosen_log_prob: Array
  ref_rejected_log_prob: Array
  chosen_length: Array
  rejected_length: Array


class Moments(NamedTuple):
  """Exact moments of minus each loss's gradient, over all groups or pairs.

  Attributes:
    mean: [K, D].
    variance: [K] trace of the covariance.
    finite: [K] probability that the loss and its gradient are finite.
  """

  mean: Array
  variance: Array
  finite: Array


def group_moments(
  losses: Sequence[Callable[[Samples], Array]],
  problem: Problem,
  *,
  group_size: int,
  behaviour: str,
  padding: str = "zero",
) -> Callable[[Params], Moments]:
  """Moments of minus the gradients of K losses, over all groups of `group_size` samples, averaged over prompts.

  Args:
    losses: K functions of `Samples` to a scalar, compiled together.
    problem: the policy and the rewards.
    group_size: G; the cost grows as N^G.
    behaviour: "policy" samples from the current policy, "old" from the earlier one.
    padding: values on padding: "zero", or "garbage", finite values that change with the parameters.

  Returns:
    Jitted function of params. The variance is of one group of one prompt, averaged over prompts.
  """
  space, policy = problem.policy.space, problem.policy
  groups = jnp.asarray(list(itertools.product(range(space.num_sequences), repeat=group_size)))
  fill = {"zero": lambda x: x, "garbage": lambda x: with_garbage(x, space.mask)}[padding]
  fixed = fill(fixed_stats(problem))
  mask = jnp.asarray(space.mask)

  @jax.jit
  def moments(params: Params) -> Moments:
    values, jacobian = map(fill, _value_and_jacobian(lambda p: policy_stats(problem, p), params))
    sampler = policy.log_probs(params if behaviour == "policy" else problem.old_params)
    weights = jnp.exp(jnp.sum(sampler[groups], axis=-1))

    def one_prompt(rewards):
      def one_group(group):
        def group_loss(stats_of_group):
          samples = Samples(*stats_of_group, *fixed[:, group], mask[group], rewards[group])
          stacked = jnp.stack([loss(samples) for loss in losses])
          return stacked, stacked

        gradients, stacked = jax.jacrev(group_loss, has_aux=True)(values[:, group])
        return -jnp.einsum("lkgt,kgtd->ld", gradients, jacobian[:, group]), stacked

      return _moments(*jax.lax.map(one_group, groups, batch_size=512), weights)

    return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(one_prompt, problem.rewards))

  return moments


def policy_stats(problem: Problem, params: Params) -> Array:
  """[3, N, T] token log-probs, entropies and KLs from the reference, nats; zero on padding."""
  policy = problem.policy
  ref = policy.token_log_probs(problem.ref_params)
  return jnp.stack([policy.token_log_probs(params), policy.token_entropies(params), policy.token_kls(params, ref)])


def fixed_stats(problem: Problem) -> Array:
  """[2, N, T] token log-probs of the earlier and of the reference policy, nats; zero on padding."""
  return jnp.stack([problem.policy.token_log_probs(p) for p in (problem.old_params, problem.ref_params)])


def with_garbage(x: Array, mask: np.ndarray) -> Array:
  """[K, N, T, ...] with arbitrary values of size 1 to 3 outside the [N, T] mask, the same for every x of a shape."""
  rng = np.random.default_rng(x.shape)
  garbage = rng.uniform(1, 3, x.shape) * rng.choice([-1, 1], x.shape)
  return jnp.where(mask.reshape(1, *mask.shape, *(1,) * (x.ndim - 3)), x, garbage)


def pair_moments(losses: Sequence[Callable[[Pair], Array]], problem: Problem) -> Callable[[Params], Moments]:
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
  pair_probs = jnp.exp(ref[chosen] + ref[rejected])
  weights = pair_probs * jax.nn.sigmoid(rewards[chosen] - rewards[rejected])

  @jax.jit
  def moments(params: Params) -> Moments:
    log_probs, jacobian = _value_and_jacobian(policy.log_probs, params)

    def one_pair(w, v):
      def pair_loss(x):
        pair = Pair(x[0], x[1], ref[w], ref[v], lengths[w], lengths[v])
        stacked = jnp.stack([loss(pair) for loss in losses])
        return stacked, stacked

      both = jnp.stack([w, v])
      gradients, stacked = jax.jacrev(pair_loss, has_aux=True)(log_probs[both])
      return -gradients @ jacobian[both], stacked

    return _moments(*jax.vmap(one_pair)(chosen, rejected), weights / jnp.sum(weights))

  return moments


def flat_gradient(objective: Callable[[Params], Array], params: Params) -> Array:
  """Gradient as one vector, [D]."""
  return ravel_pytree(jax.grad(objective)(params))[0]


def _value_and_jacobian(f: Callable[[Params], Array], params: Params) -> tuple[Array, Array]:
  flat, unravel = ravel_pytree(params)
  return f(params), jax.jacrev(lambda x: f(unravel(x)))(flat)


def _moments(gradients: Array, losses: Array, weights: Array) -> Moments:
  """Moments from [M, K, D] gradients, [M, K] losses and [M] weights that sum to one."""
  mean = jnp.tensordot(weights, gradients, axes=1)
  finite = jnp.isfinite(losses) & jnp.all(jnp.isfinite(gradients), axis=-1)
  return Moments(mean, weights @ jnp.sum(jnp.square(gradients - mean), axis=-1), weights @ finite)
