"""The library's losses as functions of one group or pair, and their means, over all groups or pairs or over samples.

The mean of a loss over *all* groups (or pairs), weighted by their probability, has the expected gradient of sampling.
Training on it shows without noise that the estimator is unbiased.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from experiments.studies.exactness_problems import THRESHOLD
from experiments.studies.exactness_problems import Problem
from experiments.studies.exactness_problems import PromptedPolicy
from qempo_jax import advantages
from qempo_jax import constraints
from qempo_jax import estimators
from qempo_jax import losses
from qempo_jax import methods
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.testing import Pair
from qempo_jax.testing import Samples
from qempo_jax.token_stats import TokenStats

_sg = jax.lax.stop_gradient


class Method(NamedTuple):
  """Training of the policy by one loss.

  Attributes:
    loss: maps one group (`Samples`) or one pair (`Pair`) and the multipliers of quality, KL and coherence to a scalar.
    inputs: "group" or "pair".
    drawn_from: "policy", or "data": half the reference, half uniform over all responses.
    learned: True if controllers learn the multipliers; otherwise they are exact constants.
    labels: labels of pairs: "bradley_terry", or "hard", where the better response always wins (a control).
  """

  loss: Callable[[Any, Array, Array, Array], Array]
  inputs: str
  drawn_from: str
  learned: bool = True
  labels: str = "bradley_terry"


def policy_gradient(group: Samples, quality: Array, kl: Array, coherence: Array) -> Array:
  """Leave-one-out policy gradient of the Lagrangian's shaped reward."""
  shaped = advantages.lagrangian_rewards(
    group.rewards,
    group.log_probs,
    group.ref_log_probs,
    quality_multiplier=quality,
    kl_multiplier=kl,
    entropy_weight=1.0,
  )
  return _policy_gradient(advantages.leave_one_out(shaped), group)


def rao_blackwell(group: Samples, quality: Array, kl: Array, coherence: Array) -> Array:
  """Leave-one-out policy gradient of the reward; entropy and KL from exact next-token distributions."""
  entropy = jax.vmap(estimators.sequence_entropy_surrogate)
  divergence = jax.vmap(estimators.sequence_kl_surrogate)
  lagrangian = (
    quality * _policy_gradient(advantages.leave_one_out(group.rewards), group)
    - jnp.mean(entropy(group.token_log_probs, group.token_entropies, group.mask))
    + kl * jnp.mean(divergence(group.token_log_probs, group.token_kls, group.mask))
  )
  return lagrangian / (1 + quality + kl)


def trajectory_balance(group: Samples, quality: Array, kl: Array, coherence: Array) -> Array:
  """VarGrad in multiplier form, alpha = 1 + mu, beta = mu for the reward lambda r: defined at lambda = 0 too."""
  return losses.trajectory_balance_loss(
    group.log_probs, quality * group.rewards, group.ref_log_probs, alpha=1 + kl, beta=kl
  )


def preference(pair: Pair, quality: Array, kl: Array, coherence: Array) -> Array:
  """The pairwise loss of QEMPO-KL; with mu = 0 that of QEMPO."""
  return losses.qempo_kl_loss(*pair[:4], quality_multiplier=quality, kl_multiplier=kl)


def token_entropy_bonus(group: Samples, quality: Array, kl: Array, coherence: Array) -> Array:
  """A control, biased: the usual bonus, which drops what a token does to the entropy after it."""
  shaped = quality * group.rewards + kl * (group.ref_log_probs - group.log_probs)
  bonus = jax.vmap(lambda *x: losses.token_entropy_bonus_loss(*x, entropy_weight=1.0))
  advantage = advantages.leave_one_out(_sg(shaped))
  return jnp.mean(bonus(group.token_log_probs, group.token_entropies, advantage, group.mask))


def length_normalised_preference(pair: Pair, quality: Array, kl: Array, coherence: Array) -> Array:
  """A control, biased: means over tokens in place of sums."""
  return losses.length_normalised_preference_loss(*pair, alpha=(1 + kl) / quality, beta=kl / quality)


def _coherent(entropy_gradient: str) -> Callable[[Samples, Array, Array, Array], Array]:
  """The loss that training of QEMPO-C uses, by the library's own method and constraints; bounds do not enter it."""
  bounds = {
    "quality": constraints.reward_floor("reward", 0.0),
    "coherence": constraints.coherence_budget(None, THRESHOLD),
  }
  method = methods.qempo_c(entropy_gradient=entropy_gradient)

  def loss(group: Samples, quality: Array, kl: Array, coherence: Array) -> Array:
    stats = TokenStats(group.token_log_probs, group.token_entropies)
    own = constraints.Group.on_policy({"reward": group.rewards}, group.mask, group.ref_log_probs)
    prices = methods.Prices(1.0, {"quality": quality, "coherence": coherence})
    return methods.group_loss(stats, own, prices, bounds, method, replay_weight=0.0)

  return loss


METHODS = {
  "policy gradient": Method(policy_gradient, "group", "policy"),
  "policy gradient, Rao-Blackwell": Method(rao_blackwell, "group", "policy"),
  "trajectory balance": Method(trajectory_balance, "group", "policy"),
  "trajectory balance, off-policy": Method(trajectory_balance, "group", "data"),
  "preference pairs, exact weights": Method(preference, "pair", "data", learned=False),
  "preference pairs, learned multipliers": Method(preference, "pair", "data"),
}
COHERENT = {
  "QEMPO-C": Method(_coherent("score_function"), "group", "policy"),
  "QEMPO-C, Rao-Blackwell": Method(_coherent("rao_blackwell"), "group", "policy"),
}
CONTROLS = {
  "control: token-only entropy bonus": Method(token_entropy_bonus, "group", "policy"),
  "control: length-normalised pairs": Method(length_normalised_preference, "pair", "data", False),
  "control: better response always wins": Method(preference, "pair", "data", False, "hard"),
}


def of_all_responses(policy: PromptedPolicy, params: Any, problem: Problem) -> Samples:
  """Inputs of the losses for all N responses to every prompt: leading axes [P, N]."""
  log_probs, ref = policy.token_log_probs(params), problem.ref_token_log_probs
  given = EnumerablePolicy(policy.space, init=None, token_log_probs=lambda log_probs: log_probs)
  mask = jnp.broadcast_to(policy.space.mask, ref.shape)
  entropies = jax.vmap(given.token_entropies)(log_probs)
  kls = jax.vmap(given.token_kls)(log_probs, ref)
  return Samples(log_probs, entropies, kls, _sg(log_probs), ref, mask, problem.rewards)


def enumerated_loss(
  method: Method,
  responses: Samples,
  data_log_probs: Array,
  key: Array,
  *,
  multipliers: dict[str, Array],
) -> Array:
  """Mean of the loss over all groups of two, or all pairs, of one prompt's N responses.

  Args:
    method: the loss, and where its groups or pairs come from.
    responses: all of them, leading axis N.
    data_log_probs: [N] of the data, nats.
    key: not used.
    multipliers: "quality", "kl" and "coherence".

  Returns:
    Scalar; the probabilities of groups and pairs are detached.
  """
  del key
  drawn = jnp.exp(_sg(_sampler(method, responses, data_log_probs)))
  weights = drawn[:, None] * drawn
  if method.inputs == "pair":
    weights *= 2 * _prefer(responses.rewards[:, None], responses.rewards, method.labels)
    return _mean_over_pairs(method, responses, weights, multipliers)
  one = lambda *two: method.loss(jax.tree.map(lambda *x: jnp.stack(x), *two), **multipliers)
  return jnp.sum(weights * jax.vmap(jax.vmap(one, (None, 0)), (0, None))(responses, responses))


def sampled_loss(
  method: Method,
  responses: Samples,
  data_log_probs: Array,
  key: Array,
  *,
  multipliers: dict[str, Array],
  size: int,
) -> Array:
  """The loss on one group of `size` responses, or on `size` / 2 pairs, drawn afresh; else as `enumerated_loss`."""
  draw, label = jax.random.split(key)
  sampler = _sg(_sampler(method, responses, data_log_probs))
  index = draw_responses(draw, sampler, size)
  if method.inputs == "group":
    return method.loss(jax.tree.map(lambda x: x[index], responses), **multipliers)
  first, second = index[::2], index[1::2]
  win = _prefer(responses.rewards[first], responses.rewards[second], method.labels)
  win = jax.random.uniform(label, win.shape) < win
  chosen, rejected = jnp.where(win, first, second), jnp.where(win, second, first)
  counts = jnp.zeros((len(sampler),) * 2).at[chosen, rejected].add(1.0)
  return _mean_over_pairs(method, responses, counts / len(chosen), multipliers)


def draw_responses(key: Array, log_probs: Array, size: int) -> Array:
  """[size] indices of responses drawn from [N] log-probs, by inversion."""
  return jax.random.choice(key, log_probs.shape[0], (size,), p=jnp.exp(log_probs))


def _sampler(method: Method, responses: Samples, data_log_probs: Array) -> Array:
  return responses.log_probs if method.drawn_from == "policy" else data_log_probs


def _prefer(first_reward: Array, second_reward: Array, labels: str) -> Array:
  """Probability that the first of two responses is labelled the better one."""
  difference = first_reward - second_reward
  return jax.nn.sigmoid(difference) if labels == "bradley_terry" else jnp.heaviside(difference, 0.5)


def _mean_over_pairs(method: Method, responses: Samples, weights: Array, multipliers: dict[str, Array]) -> Array:
  """Sum of the loss over all N^2 pairs (chosen, rejected), each with its weight, [N, N]."""

  def one(*two: Samples) -> Array:
    sides = [(x.log_probs, x.ref_log_probs, x.lengths) for x in two]
    return method.loss(Pair(*(x for part in zip(*sides, strict=True) for x in part)), **multipliers)

  return jnp.sum(weights * jax.vmap(jax.vmap(one, (None, 0)), (0, None))(responses, responses))


def _policy_gradient(advantage: Array, group: Samples) -> Array:
  rows = jax.vmap(losses.policy_gradient_loss)
  return jnp.mean(rows(group.token_log_probs, advantage, group.mask))
