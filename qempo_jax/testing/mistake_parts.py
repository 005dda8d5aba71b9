"""Parts of the expected gradients of right and wrong losses: grad E[r], grad H, ... and their mistakes.

Every part is the expected ascent direction, a vector [points * D], at the points of a `Problem`.
"""

from collections.abc import Callable
import functools
import itertools

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from qempo_jax import advantages
from qempo_jax import estimators
from qempo_jax.testing.enumerable import Params
from qempo_jax.testing.expectation import flat_gradient
from qempo_jax.testing.problems import Problem

_sg = jax.lax.stop_gradient
NO_FLOOR = 1e-9  # of a standard deviation


@functools.lru_cache(maxsize=8)
def parts(
  problem: Problem, *, alpha: float, beta: float, group_size: int, threshold: float | None = None
) -> dict[str, np.ndarray]:
  """All parts by name; those of group statistics depend on the group's size, those of shaped rewards on the weights.

  Args:
    problem: the enumerable problem of the check.
    alpha: entropy weight of J.
    beta: reference weight of J.
    group_size: G of the check.
    threshold: tau of a coherence constraint, which adds the part "coherence", E[1{r < tau} log q]; None for none.
  """
  of_policy = _expectations(problem, alpha=alpha, beta=beta, threshold=threshold)
  of_group = _group_gradients(problem, alpha=alpha, beta=beta, group_size=group_size, threshold=threshold)

  @jax.jit
  def at(params):
    return {name: flat_gradient(part, params) for name, part in of_policy.items()} | of_group(params)

  found = [at(params) for params in problem.params]
  return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _expectations(
  problem: Problem, *, alpha: float, beta: float, threshold: float | None
) -> dict[str, Callable[[Params], Array]]:
  """Functions of params whose gradients are the parts; samples' weights are detached."""
  policy = problem.policy
  mask, lengths = jnp.asarray(policy.space.mask), jnp.asarray(policy.space.lengths)
  ref_tokens, ref = policy.token_log_probs(problem.ref_params), problem.ref_log_probs
  old, rewards = policy.log_probs(problem.old_params), jnp.mean(problem.rewards, axis=0)
  fixed = jnp.mean(problem.fixed_rewards(beta=beta, threshold=threshold), axis=0)

  def in_loss(f):  # mean over samples of a differentiated value
    return lambda p: jnp.sum(_sg(jnp.exp(policy.log_probs(p))) * f(p))

  def in_reward(f):  # policy gradient of a detached value
    return lambda p: policy.expected(p, _sg(f(p)))

  def from_old(f):  # the same on samples of the earlier policy, without importance weights
    return lambda p: jnp.sum(jnp.exp(old) * _sg(f(p)) * policy.log_probs(p))

  def of_sequence(k):
    return lambda p: getattr(estimators.kl_values(policy.log_probs(p), ref), k)

  def of_tokens(k, per=1):
    values = lambda p: getattr(estimators.kl_values(policy.token_log_probs(p), ref_tokens), k)
    return lambda p: jnp.sum(jnp.where(mask, values(p), 0.0), axis=-1) / per

  def token_entropies(per):
    return lambda p: jnp.sum(policy.token_entropies(p), axis=-1) / per

  def shaped(p):
    return _sg(fixed - alpha * policy.log_probs(p))

  def mean_shaped(p):
    return policy.expected(p, shaped(p))

  coherence = jnp.mean(problem.fixed_rewards(beta=1.0, threshold=threshold) - problem.rewards, axis=0)
  return {
    "coherence": lambda p: policy.expected(p, coherence),
    "reward": lambda p: policy.expected(p, rewards),
    "reference": lambda p: policy.expected(p, ref),
    "entropy": policy.entropy,
    "token_entropy": in_loss(token_entropies(1)),
    "token_entropy_mean": in_loss(token_entropies(lengths)),
    "stale_entropy": lambda p: policy.expected(p, -old),
    "token_kl": in_loss(lambda p: jnp.sum(policy.token_kls(p, ref_tokens), axis=-1)),
    "k3_loss": in_loss(of_sequence("k3")),
    "k3_token_loss": in_loss(of_tokens("k3")),
    "k3_token_mean_loss": in_loss(of_tokens("k3", lengths)),
    "k2_reward": in_reward(of_sequence("k2")),
    "k3_reward": in_reward(of_sequence("k3")),
    "k3_token_reward": in_reward(of_tokens("k3")),
    "length_shaped": in_reward(lambda p: shaped(p) / lengths),
    "length_shaped_base": in_reward(lambda p: mean_shaped(p) / lengths),
    "length_reward": in_reward(lambda p: rewards / lengths),
    "length_reward_base": in_reward(lambda p: policy.expected(p, rewards) / lengths),
    "unweighted_shaped": from_old(shaped),
    "unweighted_shaped_base": from_old(lambda p: jnp.exp(old) @ shaped(p)),
    "unweighted_reward": from_old(lambda p: rewards),
    "unweighted_reward_base": from_old(lambda p: jnp.exp(old) @ rewards),
  }


def _group_gradients(
  problem: Problem, *, alpha: float, beta: float, group_size: int, threshold: float | None
) -> Callable[[Params], dict[str, Array]]:
  """Gradients of whole wrong losses of a group's rewards, log-probs and lengths, by enumeration of all groups."""
  policy, fixed = problem.policy, problem.fixed_rewards(beta=beta, threshold=threshold)
  lengths = jnp.asarray(policy.space.lengths)
  groups = jnp.asarray(list(itertools.product(range(policy.space.num_sequences), repeat=group_size)))
  std = functools.partial(advantages.std_normalised, min_std=NO_FLOOR)

  def group_losses(log_probs, group, rewards, fixed):
    length, r = lengths[group], rewards[group]
    live = fixed[group] - alpha * log_probs  # stop_gradient forgotten
    shaped = _sg(live)
    live_std = (live - jnp.mean(live)) / jnp.sqrt(jnp.var(live) + NO_FLOOR**2)
    per_group = jnp.mean(length)
    weights = {
      "std_shaped": std(shaped),
      "std_reward": std(r),
      "std_shaped_length": std(shaped) / length,
      "std_reward_length": std(r) / length,
      "group_tokens_shaped": advantages.leave_one_out(shaped) / per_group,
      "group_tokens_reward": advantages.leave_one_out(r) / per_group,
      "group_tokens_std_shaped": std(shaped) / per_group,
      "group_tokens_std_reward": std(r) / per_group,
      "std_shaped_live": live_std,
    }
    return {name: -jnp.mean(weight * log_probs) for name, weight in weights.items()}

  def of_params(params):
    log_probs = policy.log_probs(params)
    probability = jnp.exp(jnp.sum(log_probs[groups], axis=-1))

    def of_prompt(prompt):
      slopes = jax.vmap(lambda group: jax.jacrev(group_losses)(log_probs[group], group, *prompt))(groups)
      zeros = jnp.zeros_like(log_probs)
      return jax.tree.map(lambda slope: zeros.at[groups].add(-probability[:, None] * slope), slopes)

    by_sequence = jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(of_prompt, (problem.rewards, fixed)))
    weights = jnp.stack(list(by_sequence.values()))
    pull = jax.vjp(policy.log_probs, params)[1]
    flat = jax.vmap(lambda w: ravel_pytree(pull(w)[0])[0])(weights)
    return dict(zip(by_sequence, flat, strict=True))

  return of_params
