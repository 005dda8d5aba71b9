"""Small alignment problems with a known optimum."""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax.coherent import gate
from qempo_jax.family import target_log_probs
from qempo_jax.testing.enumerable import EnumerablePolicy
from qempo_jax.testing.enumerable import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """P prompts answered by one shared policy: maximise mean_p E[r_p] + alpha H(pi) + beta E[log q].

  The optimum depends only on the mean reward. Sharing therefore exposes a method that weights prompts, for example by a
  standard deviation.

  Attributes:
    policy: a table policy over N sequences of at most T tokens.
    params: parameters for the comparison of gradients, one pytree each.
    old_params: parameters of an earlier policy.
    ref_params: parameters of the reference policy.
    rewards: [P, N].
  """

  policy: EnumerablePolicy
  params: tuple[Params, ...]
  old_params: Params
  ref_params: Params
  rewards: Array

  @property
  def ref_log_probs(self) -> Array:
    """[N] log-probs of the reference policy, nats."""
    return self.policy.log_probs(self.ref_params)

  def fixed_rewards(self, *, beta: float, threshold: float | None = None) -> Array:
    """[P, N] r + beta log q, or with a threshold r + beta 1{r < threshold} log q: the shaped reward without -alpha log pi."""
    rewards = self.rewards
    counts = 1.0 if threshold is None else gate(rewards, threshold=threshold)
    return rewards + beta * counts * self.ref_log_probs

  def optimum(self, rewards: Array, *, alpha: float, beta: float) -> Params:
    """Logits of pi ∝ q^(beta/alpha) exp(r/alpha) for [N] rewards."""
    target = target_log_probs(rewards, self.ref_log_probs, alpha=alpha, beta=beta)
    return self.policy.space.table_logits(target)


def random_problem(key: Array, *, vocab_size: int, max_length: int, num_prompts: int, num_points: int) -> Problem:
  """Draws a problem with Gaussian logits and rewards, whose spread differs between prompts.

  Args:
    key: PRNG key.
    vocab_size: V, EOS included.
    max_length: T, tokens.
    num_prompts: P.
    num_points: number of parameters for the comparison of gradients.

  Returns:
    `Problem`.
  """
  policy = EnumerablePolicy.table(vocab_size, max_length)
  points, old, ref, reward, offset = jax.random.split(key, 5)
  scale = jnp.linspace(1.0, 0.3, num_prompts)[:, None]
  shape = (num_prompts, policy.space.num_sequences)
  return Problem(
    policy=policy,
    params=tuple(map(policy.init, jax.random.split(points, num_points))),
    old_params=policy.init(old),
    ref_params=policy.init(ref),
    rewards=scale * jax.random.normal(reward, shape) + jax.random.normal(offset, (num_prompts, 1)),
  )
