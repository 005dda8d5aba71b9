"""Diagnostics of estimates from reference samples (`sampled_duals`), bootstrap intervals, and best-of-k rewards."""

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
  """1 / mean(1 / x), scalar.

  It is the right average of effective sample sizes. With weights w_i / P over all prompts Kish's formula gives P
  times this, and the mean over prompts of a bias like 1 / x is 1 / this.
  """
  return 1 / jnp.mean(1 / values)


def hidden_share(rewards: chex.Array, solution: SampledSolution) -> jax.Array:
  """Share of each prompt's optimum that good responses too rare to be sampled could take.

      3 e^(s r_max) / (3 e^(s r_max) + sum_i e^(s r_i))        r_max: the best reward seen for any prompt

  Responses of total reference probability 3 / n are missed by n samples with probability e^-3 = 5 %. This is their
  share under RLHF's weights, which depend on reward alone; for tau > 0 it could be larger, since they are rare. For a
  prompt with k best samples the share is at least 3 / (3 + k + ...). For one without any, and a large multiplier, it is
  close to 1 even though the weights are equal: the effective sample size does not show this case.

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
  """Unbiased estimate of the expected best reward of `size` samples, for each prompt.

      E max = sum_i r_(i) [C(i, k) - C(i-1, k)] / C(n, k)          r_(1) <= ... <= r_(n)

  It is the mean over all C(n, k) groups of k distinct samples; resampling with replacement would be biased low. The
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
  rank = np.arange(1, number)
  chances = np.append(np.cumprod((1 - (size - 1) / rank).clip(0)[::-1])[::-1], 1) * size / number
  return jnp.sort(rewards, axis=-1) @ jnp.asarray(chances, rewards.dtype)


class Draws(NamedTuple):
  """Means over prompts of every bootstrap draw, [draws]; multipliers are inf if a draw can't meet the constraints."""

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
  """Solves on resampled prompts, each with resampled samples, as in `evaluation.intervals`.

  Coverage was measured on prompts drawn from an enumerated population, with 128 samples each and 120 repetitions. The
  95 % percentile intervals of multipliers, KL and entropy contained the exact values in 86 to 90 % at 4 prompts, 92 to
  95 % at 8 and 92 to 97 % at 15: they are too narrow with few prompts. Resampling prompts alone gave 76 to 85, 89 to 92
  and 92 to 95 %.

  Args:
    solve: (rewards, ref_log_probs) -> SampledSolution, such as a partial of `solve_rlhf`; it is traced.
    rewards: [P, n] rewards of the samples.
    ref_log_probs: [P, n] log-probs of the samples under the reference, nats.
    num_draws: number of resamples.
    seed: seed of the resampling.

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
    prompt_rng, sample_rng = jax.random.split(rng)
    row = jax.random.randint(prompt_rng, (prompts, 1), 0, prompts)
    column = jax.random.randint(sample_rng, (prompts, samples), 0, samples)
    solution = solve(rewards[row, column], ref_log_probs[row, column])
    return Draws(*(jnp.mean(getattr(solution, name)) for name in Draws._fields))

  return jax.lax.map(draw, rngs)
