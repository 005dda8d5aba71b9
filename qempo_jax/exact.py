"""Exact optima of the programs on an enumerable response set.

    RLHF       min KL(pi || q)  s.t.  E[r] >= R                     pi ∝ q exp(lambda r)
    QEMPO      max H(pi)        s.t.  E[r] >= R                     pi ∝ exp(lambda r)
    QEMPO-KL   max H(pi)        s.t.  E[r] >= R, KL(pi || q) <= K   pi ∝ q^(mu/(1+mu)) exp(lambda r/(1+mu))
    QEMPO-C    max H(pi) + nu E[1{r < tau} log q]  s.t.  E[r] >= R   pi ∝ q^(nu 1{r < tau}) exp(lambda r)

Every function takes one prompt, [Y], or a batch of prompts, [P, Y]. A batch is one of two different problems:

- `per_prompt=False`: the constraints hold for means over prompts, with one global pair of multipliers.
- `per_prompt=True`: the constraints hold for every prompt, with one pair of multipliers each.

A response with reference log-prob -inf is outside the response set (padding, for example).

The programs are those of "Quality-constrained Entropy Maximization Policy Optimization for LLM Diversity" (Pan et
al., arXiv 2602.15894). The closed forms are a reconstruction from them; `dual_newton` describes the solver.

Every function works under jit, vmap and grad. Traced inputs are not validated; the limits that
`dual_newton.qempo_kl_dual` describes are returned instead.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qempo_jax import dual_newton
from qempo_jax import family
from qempo_jax import feasible
from qempo_jax.alignment import AlignmentDecomposition
from qempo_jax.alignment import alignment_decomposition
from qempo_jax.coherent import BinaryCoherent
from qempo_jax.coherent import coherence
from qempo_jax.coherent import coherent_target_log_probs
from qempo_jax.coherent import log_base_coherent
from qempo_jax.coherent import qempo_coherent_binary
from qempo_jax.dual_newton import qempo_kl_dual
from qempo_jax.errors import InputError
from qempo_jax.family import Multipliers
from qempo_jax.feasible import FeasibleRange
from qempo_jax.feasible import InfeasibleError
from qempo_jax.feasible import feasible_range

__all__ = [
  "AlignmentDecomposition",
  "BinaryCoherent",
  "ExactSolution",
  "FeasibleRange",
  "InfeasibleError",
  "alignment_decomposition",
  "coherence",
  "coherent_target_log_probs",
  "feasible_range",
  "log_base_coherent",
  "qempo_coherent_binary",
  "qempo_kl_dual",
  "solve_base_measure",
  "solve_qempo",
  "solve_qempo_coherent",
  "solve_qempo_kl",
  "solve_rlhf",
  "solve_spl",
]


class ExactSolution(NamedTuple):
  """An optimum with its multipliers, entropy, expected reward and KL.

  Attributes:
    log_probs: [Y] or [P, Y], nats; -inf outside the response set.
    quality_multiplier: lambda, nats per unit of reward; scalar, or [P] with one pair per prompt. 0 if the floor is
      slack, inf if the floor is the highest reward.
    kl_multiplier: mu, same shape; 0 if the budget is slack or the program has none, inf at the smallest feasible budget.
    entropy: H(pi), nats; scalar for one prompt, [P] for a batch (also under global constraints).
    expected_reward: E[r], same shape as entropy.
    kl: KL(pi || q), nats, same shape as entropy.
  """

  log_probs: jax.Array
  quality_multiplier: jax.Array
  kl_multiplier: jax.Array
  entropy: jax.Array
  expected_reward: jax.Array
  kl: jax.Array


def solve_rlhf(
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  min_reward: chex.Numeric,
  per_prompt: bool = False,
) -> ExactSolution:
  """Returns the policy closest to the reference that meets a quality floor.

      min KL(pi || q)  s.t.  E[r] >= R          pi ∝ q exp(lambda r),  lambda = 1 / beta

  Source: the RLHF program, as in "Direct Preference Optimization" (Rafailov et al., arXiv 2305.18290).

  Args:
    rewards: [Y] or [P, Y] rewards.
    ref_log_probs: normalised log-probs of the reference, nats, same shape.
    min_reward: floor R; scalar, or [P] with `per_prompt`. At R = max r the limit: q on the best responses.
    per_prompt: one multiplier per prompt instead of one for all.

  Returns:
    The solution; its kl_multiplier is 0, since KL is the objective and not a constraint.

  Raises:
    InfeasibleError: min_reward above the highest reward.
    InputError: non-finite values, or a reference that is not normalised.
  """
  rewards, ref_log_probs = feasible.prepare(rewards, ref_log_probs)
  feasible.check_floor(rewards, ref_log_probs, min_reward, per_prompt=per_prompt)
  return _solve(rewards, ref_log_probs, min_reward, tau=0.0, per_prompt=per_prompt)


def solve_qempo(
  rewards: chex.Array,
  *,
  min_reward: chex.Numeric,
  ref_log_probs: chex.Array | None = None,
  per_prompt: bool = False,
) -> ExactSolution:
  """Returns the policy of largest entropy that meets a quality floor.

      max H(pi)  s.t.  E[r] >= R                pi ∝ exp(lambda r)

  Source: Pan et al. (arXiv 2602.15894), the program; the closed form is a reconstruction.

  Args:
    rewards: [Y] or [P, Y] rewards.
    min_reward: floor R; scalar, or [P] with `per_prompt`. At R = max r the limit: uniform on the best responses.
    ref_log_probs: the reference, for the reported KL and for the response set (log-probs above -inf); None for
      the uniform policy.
    per_prompt: one multiplier per prompt instead of one for all.

  Returns:
    The solution; its kl_multiplier is 0.

  Raises:
    InfeasibleError: min_reward above the highest reward.
    InputError: non-finite values, or a reference that is not normalised.

  Examples:
    Two good responses and two bad ones share the floor's 0.9 and the rest of 0.1 evenly.

    >>> best = solve_qempo(jnp.array([1.0, 1.0, 0.0, 0.0]), min_reward=0.9)
    >>> [round(float(p), 3) for p in jnp.exp(best.log_probs)]
    [0.45, 0.45, 0.05, 0.05]
  """
  if ref_log_probs is None:
    ref_log_probs = jax.nn.log_softmax(jnp.zeros(jnp.shape(rewards), jnp.result_type(rewards, jnp.float32)), axis=-1)
  rewards, ref_log_probs = feasible.prepare(rewards, ref_log_probs)
  feasible.check_floor(rewards, ref_log_probs, min_reward, per_prompt=per_prompt)
  return _solve(rewards, ref_log_probs, min_reward, tau=1.0, per_prompt=per_prompt)


def solve_qempo_kl(
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  min_reward: chex.Numeric,
  max_kl: chex.Numeric | None = None,
  kl_position: chex.Numeric | None = None,
  per_prompt: bool = False,
) -> ExactSolution:
  """Returns the policy of largest entropy that meets a quality floor within a KL budget.

      max H(pi)  s.t.  E[r] >= R, KL(pi || q) <= K          pi ∝ q^(mu/(1+mu)) exp(lambda r/(1+mu))

  The budget binds strictly between K*(R), the smallest feasible budget, and the KL of QEMPO's optimum. At K*(R), to
  rounding, the solution is that of RLHF with infinite multipliers; near it they grow like (K - K*)^(-1/2).

  Source: Pan et al. (arXiv 2602.15894), the program; closed form and dual are a reconstruction.

  Args:
    rewards: [Y] or [P, Y] rewards.
    ref_log_probs: normalised log-probs of the reference, nats, same shape.
    min_reward: floor R; scalar, or [P] with `per_prompt`.
    max_kl: budget K, nats; scalar, or [P] with `per_prompt`. Give either this or `kl_position`.
    kl_position: the budget's position in [0, 1] between K*(R) and the KL of QEMPO's optimum.
    per_prompt: one pair of multipliers per prompt instead of one for all.

  Returns:
    The solution.

  Raises:
    InfeasibleError: min_reward above the highest reward, or max_kl below K*(R).
    InputError: both or neither of max_kl and kl_position, non-finite values, or a reference that is not normalised.
  """
  if (max_kl is None) == (kl_position is None):
    raise InputError("give either max_kl, in nats, or kl_position, between 0 (RLHF) and 1 (QEMPO)")
  rewards, ref_log_probs = feasible.prepare(rewards, ref_log_probs)
  feasible.check_floor(rewards, ref_log_probs, min_reward, per_prompt=per_prompt)
  if max_kl is None:
    assert kl_position is not None
    feasible.check_position(kl_position)
    ends = feasible_range(rewards, ref_log_probs, min_reward=min_reward, per_prompt=per_prompt)
    max_kl = ends.kl_budget_at(kl_position)
  feasible.check_budget(rewards, ref_log_probs, min_reward, max_kl, per_prompt=per_prompt)
  return _solve(rewards, ref_log_probs, min_reward, max_kl, per_prompt=per_prompt)


def solve_qempo_coherent(
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  min_reward: chex.Numeric,
  threshold: chex.Numeric,
  nu: chex.Numeric = 1.0,
  width: chex.Numeric = 0.0,
  per_prompt: bool = False,
) -> ExactSolution:
  """Returns the optimum of QEMPO with a coherence constraint of multiplier nu (QEMPO-C).

      max H(pi) + nu E[1{r < tau} log q]  s.t.  E[r] >= R          pi ∝ q^(nu 1{r < tau}) exp(lambda r)

  By the KKT conditions it also solves max H(pi) s.t. E[r] >= R and E[1{r < tau} (-log q)] <= C. There C is this
  optimum's own value (`coherence`), and nu is the multiplier at which dual ascent ends.

  Unacceptable text must be likely under the reference: at nu = 1, pi(. | unacceptable) = q(. | unacceptable). With a
  binary reward and acceptable set A

      pi = P U(A) + (1 - P) q(. | not A),     P = max(R, |A| / (|A| + q(not A)))

  (`qempo_coherent_binary`). For nu >= 1 its partition function is finite for responses of any length.

  Source: the family of programs of arXiv 2602.15894 with another linear constraint; this one is ours.

  Args:
    rewards: [Y] or [P, Y] rewards.
    ref_log_probs: normalised log-probs of the reference, nats, same shape.
    min_reward: floor R; scalar, or [P] with `per_prompt`.
    threshold: tau, the smallest reward of an acceptable response.
    nu: multiplier of the coherence constraint; 0 is QEMPO.
    width: width of the soft gate sigmoid((tau - r) / width), reward units; 0 for the hard gate 1{r < tau}.
    per_prompt: one multiplier per prompt instead of one for all.

  Returns:
    The solution; its kl_multiplier is 0.

  Raises:
    InfeasibleError: min_reward above the highest reward.
    InputError: non-finite values, or a reference that is not normalised.

  Examples:
    Two acceptable answers share the floor's 0.9 evenly; the rest keeps the reference's proportions.

    >>> q = jnp.log(jnp.array([0.1, 0.3, 0.1, 0.5]))
    >>> best = solve_qempo_coherent(jnp.array([1.0, 1.0, 0.0, 0.0]), q, min_reward=0.9, threshold=1.0)
    >>> [round(float(p), 3) for p in jnp.exp(best.log_probs)]
    [0.45, 0.45, 0.017, 0.083]
  """
  rewards, ref_log_probs = feasible.prepare(rewards, ref_log_probs)
  log_base = log_base_coherent(rewards, ref_log_probs, threshold=threshold, nu=nu, width=width)
  return solve_base_measure(
    rewards, log_base, ref_log_probs=ref_log_probs, min_reward=min_reward, per_prompt=per_prompt
  )


def solve_base_measure(
  rewards: chex.Array,
  log_base: chex.Array,
  *,
  min_reward: chex.Numeric,
  ref_log_probs: chex.Array | None = None,
  per_prompt: bool = False,
) -> ExactSolution:
  """Returns the policy of largest entropy relative to a base measure that meets a quality floor.

      max -E[log(pi / m)]  s.t.  E[r] >= R          pi ∝ m exp(lambda r)

  RLHF has m = q, QEMPO m = 1, QEMPO-C m = q^(1{r < tau}), truncated QEMPO m = 1 on the reference's support.

  Args:
    rewards: [Y] or [P, Y] rewards.
    log_base: log m, same shape, up to a constant; -inf outside the response set.
    min_reward: floor R; scalar, or [P] with `per_prompt`.
    ref_log_probs: the reference, for the reported KL; None for the normalised base measure.
    per_prompt: one multiplier per prompt instead of one for all.

  Returns:
    The solution; its kl_multiplier is 0.

  Raises:
    InfeasibleError: min_reward above the highest reward.
    InputError: non-finite values.
  """
  rewards, log_base = feasible.prepare(rewards, jax.nn.log_softmax(jnp.asarray(log_base), axis=-1))
  feasible.check_floor(rewards, log_base, min_reward, per_prompt=per_prompt)
  solution = _solve(rewards, log_base, min_reward, tau=0.0, per_prompt=per_prompt)
  if ref_log_probs is None:
    return solution
  return solution._replace(kl=dual_newton.kl_divergence(solution.log_probs, ref_log_probs))


def solve_spl(
  rewards: chex.Array, ref_log_probs: chex.Array, *, alpha: chex.Numeric, beta: chex.Numeric
) -> ExactSolution:
  """Returns the optimum of soft preference learning, whose weights are fixed by hand.

      max E[r] + alpha H(pi) + beta E_pi[log q]          pi ∝ q^(beta/alpha) exp(r/alpha)

  Source: "Diverse Preference Learning for Capabilities and Alignment" (Slocum et al., arXiv 2511.08594).

  Args:
    rewards: [Y] or [P, Y] rewards.
    ref_log_probs: normalised log-probs of the reference, nats, same shape.
    alpha: entropy weight > 0, scalar, in units of reward per nat.
    beta: reference weight, scalar, same units.

  Returns:
    The solution; its multipliers are those of `family.multipliers_from_weights`.

  Raises:
    InputError: non-finite values, or a reference that is not normalised.
  """
  rewards, ref_log_probs = feasible.prepare(rewards, ref_log_probs)
  log_probs = family.target_log_probs(rewards, ref_log_probs, alpha=alpha, beta=beta)
  return _solution(log_probs, family.multipliers_from_weights(alpha, beta), rewards, ref_log_probs)


def _solve(
  rewards: jax.Array,
  ref_log_probs: jax.Array,
  min_reward: chex.Numeric,
  max_kl: chex.Numeric = jnp.inf,
  *,
  tau: float | None = None,
  per_prompt: bool,
) -> ExactSolution:
  bounds = (jnp.asarray(bound, rewards.dtype) for bound in (min_reward, max_kl))
  return _solve_jitted(rewards, ref_log_probs, *bounds, tau=tau, per_prompt=per_prompt)


@functools.partial(jax.jit, static_argnames=("tau", "per_prompt"))
def _solve_jitted(
  rewards: jax.Array,
  ref_log_probs: jax.Array,
  min_reward: jax.Array,
  max_kl: jax.Array,
  *,
  tau: float | None,
  per_prompt: bool,
) -> ExactSolution:
  """Solves a program at one end of the path, RLHF (tau = 0) or QEMPO (tau = 1), or QEMPO-KL within its budget (None)."""

  def one(
    rewards: jax.Array, ref_log_probs: jax.Array, min_reward: jax.Array, max_kl: jax.Array
  ) -> tuple[jax.Array, Multipliers]:
    if tau is None:
      point = dual_newton.point_at_kl(rewards, ref_log_probs, min_reward, max_kl)
      multipliers = dual_newton.multipliers_at(point)
    else:
      point = dual_newton.point_at_tau(rewards, ref_log_probs, min_reward, tau)
      multipliers = Multipliers(quality=point.tilt, kl=jnp.zeros_like(point.tilt))
    at_top = min_reward >= dual_newton.reward_interval(rewards, ref_log_probs)[1]
    quality = jnp.where(at_top & (point.tilt > 0), jnp.inf, multipliers.quality)
    log_probs = dual_newton.path_log_probs(rewards, ref_log_probs, point)
    return log_probs, multipliers._replace(quality=quality)

  log_probs, multipliers = feasible.for_each_problem(
    one, rewards, ref_log_probs, min_reward, max_kl, per_prompt=per_prompt
  )
  return _solution(log_probs.reshape(rewards.shape), multipliers, rewards, ref_log_probs)


def _solution(
  log_probs: jax.Array, multipliers: Multipliers, rewards: jax.Array, ref_log_probs: jax.Array
) -> ExactSolution:
  return ExactSolution(
    log_probs=log_probs,
    quality_multiplier=multipliers.quality,
    kl_multiplier=multipliers.kl,
    entropy=dual_newton.entropy(log_probs),
    expected_reward=dual_newton.expectation(log_probs, rewards),
    kl=dual_newton.kl_divergence(log_probs, ref_log_probs),
  )
