"""How far samples of the reference can be trusted to foretell an optimum, and what they say without one.

`sampled_duals` says what it estimates; this says when not to believe it.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.sampled_duals import SampledSolution


def harmonic_mean(values: chex.Array) -> jax.Array:
  """Returns 1 / mean(1 / x), scalar.

  Of effective sample sizes it is the one to judge by: with weights w_i / P over all prompts Kish's formula gives P
  times this, and the mean over prompts of a bias like 1 / x is 1 / this.
  """
  return 1 / jnp.mean(1 / values)


def hidden_share(rewards: chex.Array, solution: SampledSolution) -> jax.Array:
  """Returns the share of the optimum, for each prompt, that good responses too rare to be seen could take.

      3 e^(s r_max) / (3 e^(s r_max) + sum_i e^(s r_i))        r_max: the best reward seen for any prompt

  Responses of total reference probability 3 / n are missed by n samples with probability e^-3 = 5 %. This is the share
  they would get as RLHF weighs them, by reward alone; for tau > 0 they could take more, being rare. Where a prompt has
  k best samples it is at least 3 / (3 + k + ...); where it has none, and the multiplier is large, it is close to 1
  though the weights are equal: the case that the effective sample size does not see.

  Args:
    rewards: [P, n] rewards of the samples.
    solution: the solution on them.

  Returns:
    [P] in (0, 1).
  """
  rewards = jnp.atleast_2d(jnp.asarray(rewards))
  seen = jax.nn.logsumexp(solution.point.tilt * (rewards - jnp.max(rewards)), axis=-1)
  return jax.nn.sigmoid(jnp.log(3.0) - seen)


def expected_best_of(rewards: chex.Array, size: int) -> jax.Array:
  """Returns the unbiased estimate of the expected best reward of `size` samples, for each prompt.

      E max = sum_i r_(i) [C(i, k) - C(i-1, k)] / C(n, k)          r_(1) <= ... <= r_(n)

  The mean over all C(n, k) groups of k distinct samples: a resampling with replacement would be biased low. The
  policy that picks the best of k is at most log k - (k-1)/k nats from the reference (Beirami et al., arXiv 2401.01879).
  Source: the combinatorial estimator of pass@k (Chen et al., arXiv 2107.03374), for any reward.

  Args:
    rewards: [..., n] rewards of samples.
    size: k, from 1 (the mean) to n (the largest).

  Returns:
    [...] estimates.

  Raises:
    InputError: a size outside 1 ... n.
  """
  rewards = jnp.asarray(rewards)
  number = rewards.shape[-1]
  if not 1 <= size <= number:
    raise InputError(f"the best of {size} can't be estimated from {number} samples a prompt; draw more of them")
  # C(i-1, k-1) / C(n, k), by p(n) = k / n and p(i) / p(i+1) = 1 - (k-1) / i
  place = np.arange(1, number)
  chances = np.append(np.cumprod((1 - (size - 1) / place).clip(0)[::-1])[::-1], 1) * size / number
  return jnp.sort(rewards, axis=-1) @ jnp.asarray(chances, rewards.dtype)


class Draws(NamedTuple):
  """The global figures of every bootstrap draw, [draws]; multipliers are inf where a draw can't meet the constraints."""

  quality_multiplier: jax.Array
  kl_multiplier: jax.Array
  expected_reward: jax.Array
  entropy: jax.Array
  kl: jax.Array


def bootstrap(
  solve: Callable[[jax.Array, jax.Array], SampledSolution],
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  num_draws: int,
  seed: int,
) -> Draws:
  """Solves again on resampled prompts, with the samples of each drawn anew too, as in `evaluation.intervals`.

  On prompts drawn from an enumerated population, 128 samples of each, 95 % percentile intervals of multipliers, KL and
  entropy held the exact values in 86 to 90 % of 120 repetitions at 4 prompts, 92 to 95 % at 8 and 92 to 97 % at 15 (by
  resampling prompts alone 76 to 85, 89 to 92 and 92 to 95 %): they err on the narrow side with few prompts.

  Args:
    solve: (rewards, ref_log_probs) -> SampledSolution, such as a partial of `solve_rlhf`; it is traced.
    rewards: [P, n] rewards of the samples.
    ref_log_probs: [P, n] their log-probs, nats.
    num_draws: how many resamples.
    seed: of the resampling.

  Returns:
    Draws.
  """
  rewards, ref_log_probs = jnp.atleast_2d(jnp.asarray(rewards)), jnp.atleast_2d(jnp.asarray(ref_log_probs))
  return _bootstrap(rewards, ref_log_probs, jax.random.split(jax.random.key(seed), num_draws), solve=solve)


@functools.partial(jax.jit, static_argnames="solve")
def _bootstrap(
  rewards: jax.Array,
  ref_log_probs: jax.Array,
  rngs: jax.Array,
  *,
  solve: Callable[[jax.Array, jax.Array], SampledSolution],
) -> Draws:
  prompts, samples = rewards.shape

  def draw(rng: jax.Array) -> Draws:
    of_prompt, of_sample = jax.random.split(rng)
    row = jax.random.randint(of_prompt, (prompts, 1), 0, prompts)
    column = jax.random.randint(of_sample, (prompts, samples), 0, samples)
    solution = solve(rewards[row, column], ref_log_probs[row, column])
    return Draws(*(jnp.mean(getattr(solution, name)) for name in Draws._fields))

  return jax.lax.map(draw, rngs)
