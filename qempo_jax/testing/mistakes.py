"""Signatures of the known mistakes: the gradient each follows in expectation, in place of grad J.

With J = E[r] + (alpha - beta) H - beta KL, a wrong estimator of H or of KL leaves its own vector in the
expected gradient; the table below holds every combination of them, and what group statistics, lengths and
stale log-probs do to the whole.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import itertools

import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax import advantages
from qempo_jax import estimators
from qempo_jax import losses
from qempo_jax.testing.enumerable import Params
from qempo_jax.testing.expectation import Pair
from qempo_jax.testing.expectation import Samples
from qempo_jax.testing.expectation import flat_gradient
from qempo_jax.testing.expectation import group_moments
from qempo_jax.testing.expectation import pair_moments
from qempo_jax.testing.problems import Problem

Signature = tuple[str, Callable[[Params], Array]]

_sg = jax.lax.stop_gradient
_RIGHT = ""
_ENTROPY = {
  _RIGHT: "entropy",
  "k1 entropy in the loss: -log pi of samples, differentiated, has zero expected gradient": "nothing",
  "token-only entropy: the effect of a token on the entropy after it is missing": "token_entropy",
}
_KL = {
  _RIGHT: "kl",
  "k1 in the loss: log pi - log q of samples, differentiated, has zero expected gradient": "nothing",
  "k3 in the loss: its gradient is that of the forward KL": "k3_loss",
  "k3 per token in the loss: a forward KL without its effect on later tokens": "k3_token_loss",
  "k2 or the exact KL per token in the loss: its effect on later tokens is missing": "token_kl",
  "k3 in the reward: grad KL(pi||q) - grad KL(q||pi)": "k3_reward",
  "k2 in the reward: not a KL's gradient": "k2_reward",
  "k3 per token in the reward": "k3_token_reward",
}


def group_signatures(
  problem: Problem, *, alpha: float, beta: float, group_size: int
) -> Iterator[Signature]:
  """Names of mistakes and the mean gradient ascended under each, fewest mistakes first.

  Args:
    problem: what the loss was checked on.
    alpha: entropy weight of J.
    beta: reference weight of J.
    group_size: G of the check.

  Yields:
    (name, params -> [D]) pairs.
  """
  gradients = _part_gradients(problem)

  def weighted(**weights):
    return lambda params: sum(
      c * gradients(params)[name] for name, c in weights.items() if name != "nothing"
    )

  def combined(entropy, kl):
    return weighted(reward=1.0, **{entropy: alpha - beta, kl: -beta})

  def separate(entropy):  # J = E[r] + alpha H + beta E[log q]
    return weighted(reward=1.0, reference=beta, **{entropy: alpha})

  wrong = [(h, k) for h, k in itertools.product(_ENTROPY, _KL) if h or k]
  for h, k in sorted(wrong, key=lambda names: sum(map(bool, names))):
    yield " + ".join(filter(None, (h, k))), combined(_ENTROPY[h], _KL[k])
  for h in filter(None, _ENTROPY):
    yield h, separate(_ENTROPY[h])

  def stale(params):
    log_pi = problem.policy.log_probs
    detached = -alpha * log_pi(problem.old_params) + beta * problem.ref_log_probs
    return flat_gradient(
      lambda p: problem.policy.expected(p, jnp.mean(problem.rewards, axis=0) + detached), params
    )

  yield "stale log-probs in the shaped reward: the entropy has become a cross-entropy", stale
  moments = _wrong_group_moments(problem, alpha, beta, group_size)
  for k, name in enumerate(_group_losses(alpha, beta)):
    yield name, lambda params, k=k: moments(params).mean[k]


def pair_signatures(problem: Problem, *, alpha: float, beta: float) -> Iterator[Signature]:
  """Names of mistakes in a pairwise loss and the mean gradient ascended under each.

  Args:
    problem: what the loss was checked on.
    alpha: entropy weight of J.
    beta: reference weight of J.

  Yields:
    (name, params -> [D]) pairs.
  """
  weights = dict(alpha=alpha, beta=beta)

  def per_token_policy(pair: Pair) -> Array:
    chosen = pair.chosen_log_prob / pair.chosen_length
    rejected = pair.rejected_log_prob / pair.rejected_length
    return losses.preference_loss(chosen, rejected, *pair[2:4], **weights)

  wrong = {
    "length-normalised pair loss: log Z no longer cancels": lambda pair: (
      losses.length_normalised_preference_loss(*pair, **weights)
    ),
    "length-normalised pair loss, policy's log-probs only": per_token_policy,
    "chosen and rejected exchanged": lambda pair: losses.preference_loss(
      *(pair[i] for i in (1, 0, 3, 2)), **weights
    ),
    "the reference is left out": lambda pair: losses.preference_loss(
      *pair[:4], alpha=alpha, beta=0.0
    ),
    "the reference enters with the wrong sign": lambda pair: losses.preference_loss(
      *pair[:4], alpha=alpha, beta=-beta
    ),
    "alpha taken for beta (DPO)": lambda pair: losses.preference_loss(
      *pair[:4], alpha=alpha, beta=alpha
    ),
  }
  moments = pair_moments(list(wrong.values()), problem)
  for k, name in enumerate(wrong):
    yield name, lambda params, k=k: moments(params).mean[k]


@functools.lru_cache(maxsize=4)
def _part_gradients(problem: Problem) -> Callable[[Params], dict[str, Array]]:
  parts = _expectations(problem)
  return jax.jit(lambda params: {name: flat_gradient(part, params) for name, part in parts.items()})


@functools.lru_cache(maxsize=4)
def _wrong_group_moments(problem: Problem, alpha: float, beta: float, group_size: int):
  wrong = list(_group_losses(alpha, beta).values())
  return group_moments(wrong, problem, group_size=group_size, behaviour="policy")


def _expectations(problem: Problem) -> dict[str, Callable[[Params], Array]]:
  """Functions of params whose gradients are the parts of an expected gradient; samples' weights are detached."""
  policy = problem.policy
  mask, ref_tokens = jnp.asarray(policy.space.mask), policy.token_log_probs(problem.ref_params)
  ref, rewards = problem.ref_log_probs, jnp.mean(problem.rewards, axis=0)

  def in_loss(f):  # mean over samples of a differentiated value
    return lambda p: jnp.sum(_sg(jnp.exp(policy.log_probs(p))) * f(p))

  def in_reward(f):  # policy gradient of a detached value
    return lambda p: policy.expected(p, _sg(f(p)))

  def of_sequence(k):
    return lambda p: getattr(estimators.kl_values(policy.log_probs(p), ref), k)

  def of_tokens(k):
    values = lambda p: getattr(estimators.kl_values(policy.token_log_probs(p), ref_tokens), k)
    return lambda p: jnp.sum(jnp.where(mask, values(p), 0.0), axis=-1)

  return {
    "reward": lambda p: policy.expected(p, rewards),
    "reference": lambda p: policy.expected(p, ref),
    "entropy": policy.entropy,
    "token_entropy": in_loss(lambda p: jnp.sum(policy.token_entropies(p), axis=-1)),
    "kl": lambda p: policy.kl(p, ref),
    "token_kl": in_loss(lambda p: jnp.sum(policy.token_kls(p, ref_tokens), axis=-1)),
    "k3_loss": in_loss(of_sequence("k3")),
    "k3_token_loss": in_loss(of_tokens("k3")),
    "k2_reward": in_reward(of_sequence("k2")),
    "k3_reward": in_reward(of_sequence("k3")),
    "k3_token_reward": in_reward(of_tokens("k3")),
  }


def _group_losses(alpha: float, beta: float) -> dict[str, Callable[[Samples], Array]]:
  """Whole wrong losses, where the mistake depends on the group or on the lengths."""
  no_floor = 1e-9

  def shaped(s: Samples) -> Array:
    return advantages.shaped_rewards(
      s.rewards, s.log_probs, s.ref_log_probs, alpha=alpha, beta=beta
    )

  def score(advantage: Array, s: Samples) -> Array:
    return -jnp.mean(_sg(advantage) * s.log_probs)

  def std_of_reward(s: Samples) -> Array:
    rest = shaped(s) - s.rewards
    return advantages.std_normalised(s.rewards, min_std=no_floor) + advantages.leave_one_out(rest)

  return {
    "std-normalised shaped reward: prompts are weighted by 1 / std": lambda s: score(
      advantages.std_normalised(shaped(s), min_std=no_floor), s
    ),
    "std-normalised reward: alpha and beta change with every group": lambda s: score(
      std_of_reward(s), s
    ),
    "length-normalised policy gradient": lambda s: score(
      advantages.leave_one_out(shaped(s)) / s.lengths, s
    ),
    "length-normalised policy gradient, without baseline": lambda s: score(
      shaped(s) / s.lengths, s
    ),
    "std-normalised shaped reward and length-normalised policy gradient (GRPO)": lambda s: score(
      advantages.std_normalised(shaped(s), min_std=no_floor) / s.lengths, s
    ),
  }
