"""Does a loss optimise what it should? Answered by exact enumeration, never by sampling."""

from collections.abc import Callable
from collections.abc import Iterable
import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax import advantages
from qempo_jax.errors import InputError
from qempo_jax.testing.expectation import Moments
from qempo_jax.testing.expectation import Pair
from qempo_jax.testing.expectation import Samples
from qempo_jax.testing.expectation import flat_gradient
from qempo_jax.testing.expectation import group_moments
from qempo_jax.testing.expectation import pair_moments
from qempo_jax.testing.mistakes import Signature
from qempo_jax.testing.mistakes import group_signatures
from qempo_jax.testing.mistakes import pair_signatures
from qempo_jax.testing.problems import Problem
from qempo_jax.testing.problems import random_problem


class CheckReport(NamedTuple):
  """What `check_loss` found; printing it gives a summary.

  Attributes:
    ok: the stationary point is right and, where it should be, the gradient is that of J.
    gradient_is_right: minus the expected gradient is a positive multiple of grad J; None for pairs, which
      estimate no such thing.
    gradient_error: distance from the nearest positive multiple, relative to the gradient.
    scale: that multiple.
    stationary_is_right: the expected gradient vanishes at pi ∝ q^(beta/alpha) exp(r/alpha).
    stationary_gradient: its norm there, relative to elsewhere.
    variance: trace of the gradient's covariance for one group or pair, over scale^2 where there is one.
    reference_variance: the same of the leave-one-out policy gradient of the shaped reward; None for pairs and
      off-policy.
    mistakes: names of the known mistakes with this signature.
  """

  ok: bool
  gradient_is_right: bool | None
  gradient_error: float | None
  scale: float | None
  stationary_is_right: bool
  stationary_gradient: float
  variance: float
  reference_variance: float | None
  mistakes: tuple[str, ...]

  def __str__(self) -> str:
    lines = ["OK" if self.ok else "NOT OK"]
    if self.gradient_is_right is not None:
      verdict = "not that of J, nor need it be" if self.ok and not self.gradient_is_right else _yes(self.gradient_is_right)
      lines.append(
        f"expected gradient: {verdict} "
        f"(relative error {self.gradient_error:.1e}, {self.scale:.4g} x grad J)"
      )
    lines.append(
      f"stationary point: {_yes(self.stationary_is_right)} (relative gradient there {self.stationary_gradient:.1e})"
    )
    lines.append(f"variance: {self.variance:.4g}")
    if self.reference_variance is not None:
      lines[-1] += f" (leave-one-out policy gradient: {self.reference_variance:.4g})"
    return "\n  ".join(lines + [f"looks like: {name}" for name in self.mistakes])


def check_loss(
  loss: Callable[[Samples], Array] | Callable[[Pair], Array],
  *,
  alpha: float,
  beta: float,
  inputs: str = "group",
  group_size: int = 3,
  behaviour: str = "policy",
  problem: Problem | None = None,
  tolerance: float = 1e-4,
) -> CheckReport:
  """Checks a loss against J(pi) = E[r] + alpha H(pi) + beta E[log q] on a problem small enough to enumerate.

  All groups (or pairs) are summed over, in double precision: the answer has no sampling error.

      report = check_loss(my_loss, alpha=0.5, beta=0.2)      # my_loss(samples) -> scalar
      print(report)

  For an estimator that gives weights of grad log pi instead of a loss, see `loss_of_score_weights`.

  Args:
    loss: differentiable function of `Samples` (or of a `Pair`) to a scalar to minimise.
    alpha: entropy weight of the objective it should maximise.
    beta: reference weight of that objective.
    inputs: "group" for losses on samples of the policy, "pair" for preference losses.
    group_size: samples in a group; the cost grows as 15^group_size on the default problem.
    behaviour: "policy" draws the groups from the current policy; "old" from an earlier one, whose log-probs are
      `samples.old_token_log_probs`: for losses with importance ratios, or off-policy ones. Off-policy, only the
      stationary point decides whether the report is ok.
    problem: what to check on; None takes 15 sequences of at most 3 tokens and three prompts.
    tolerance: relative, of both checks.

  Returns:
    `CheckReport`.

  Raises:
    InputError: `inputs` or `behaviour` is not one of the two words.
  """
  if inputs not in ("group", "pair") or behaviour not in ("policy", "old"):
    raise InputError('inputs is "group" or "pair", behaviour is "policy" or "old"')
  with jax.enable_x64(True):
    problem = default_problem() if problem is None else problem
    if inputs == "pair":
      return _check_pairs(loss, problem, alpha, beta, tolerance)
    return _check_groups(loss, problem, alpha, beta, group_size, behaviour, tolerance)


@functools.cache
def default_problem() -> Problem:
  """The problem of `check_loss`: 3 tokens with EOS, at most 3 of them, 3 prompts, 3 random policies."""
  with jax.enable_x64(True):
    return random_problem(
      jax.random.key(0), vocab_size=3, max_length=3, num_prompts=3, num_points=3
    )


def loss_of_score_weights(weights: Callable[[Samples], Array]) -> Callable[[Samples], Array]:
  """Turns a gradient estimator (1/G) sum_k sum_t c_kt grad log pi(y_kt) into the loss that has it.

  Args:
    weights: maps `Samples` to c, [G] or [G, T].

  Returns:
    A loss for `check_loss`.
  """

  def loss(samples: Samples) -> Array:
    c = jax.lax.stop_gradient(weights(samples))
    c = c[:, None] if c.ndim == 1 else c
    return -jnp.mean(jnp.sum(jnp.where(samples.mask, c * samples.token_log_probs, 0.0), axis=-1))

  return loss


def _check_groups(loss, problem, alpha, beta, group_size, behaviour, tolerance) -> CheckReport:
  rewards = jnp.mean(problem.rewards, axis=0)

  def objective(params):
    return problem.policy.objective(params, rewards, problem.ref_log_probs, alpha=alpha, beta=beta)

  def advantage(s):
    shaped = advantages.shaped_rewards(
      s.rewards, s.log_probs, s.ref_log_probs, alpha=alpha, beta=beta
    )
    return advantages.leave_one_out(shaped)

  moments = group_moments(
    [loss, loss_of_score_weights(advantage)], problem, group_size=group_size, behaviour=behaviour
  )
  found = _at_points(moments, problem)
  stationary = _relative_gradient(moments(problem.optimum(rewards, alpha=alpha, beta=beta)), found)
  mean = found.mean[:, 0].ravel()
  scale, error = _fit(mean, _stack(lambda p: flat_gradient(objective, p), problem))
  right = bool(error < tolerance)
  ok = stationary < tolerance and (right or behaviour == "old")
  signatures = (
    () if ok else group_signatures(problem, alpha=alpha, beta=beta, group_size=group_size)
  )
  variance, reference_variance = jnp.mean(found.variance, axis=0)
  return CheckReport(
    ok=ok,
    gradient_is_right=right,
    gradient_error=float(error),
    scale=float(scale),
    stationary_is_right=stationary < tolerance,
    stationary_gradient=stationary,
    variance=float(variance / scale**2 if scale else variance),
    reference_variance=float(reference_variance) if behaviour == "policy" else None,
    mistakes=_matches(mean, signatures, problem, tolerance),
  )


def _check_pairs(loss, problem, alpha, beta, tolerance) -> CheckReport:
  moments = pair_moments([loss], problem)
  found = _at_points(moments, problem)
  stationary = _relative_gradient(
    moments(problem.optimum(problem.rewards[0], alpha=alpha, beta=beta)), found
  )
  ok = stationary < tolerance
  signatures = () if ok else pair_signatures(problem, alpha=alpha, beta=beta)
  return CheckReport(
    ok=ok,
    gradient_is_right=None,
    gradient_error=None,
    scale=None,
    stationary_is_right=ok,
    stationary_gradient=stationary,
    variance=float(jnp.mean(found.variance)),
    reference_variance=None,
    mistakes=_matches(found.mean[:, 0].ravel(), signatures, problem, tolerance),
  )


def _at_points(moments: Callable[..., Moments], problem: Problem) -> Moments:
  """Moments at every point of the problem: [points, K, D] and [points, K]."""
  return jax.tree.map(lambda *x: jnp.stack(x), *map(moments, problem.params))


def _matches(
  mean: Array, signatures: Iterable[Signature], problem: Problem, tolerance: float
) -> tuple[str, ...]:
  """The simplest mistakes whose gradient is a positive multiple of `mean`, if any."""
  if not jnp.any(mean):
    return ()
  for name, gradient in signatures:
    if _fit(mean, _stack(gradient, problem))[1] < 10 * tolerance:
      return tuple(name.split(" + "))
  return ()


def _stack(gradient: Callable[..., Array], problem: Problem) -> Array:
  return jnp.concatenate([gradient(p) for p in problem.params])


def _fit(found: Array, expected: Array) -> tuple[Array, Array]:
  """Best multiple c >= 0 of `expected`, and |found - c expected| / |found|; 1 where nothing moves."""
  tiny = jnp.finfo(found.dtype).tiny
  scale = jnp.maximum(found @ expected / jnp.maximum(expected @ expected, tiny), 0.0)
  norm = jnp.linalg.norm(found)
  return scale, jnp.where(
    norm > 0, jnp.linalg.norm(found - scale * expected) / jnp.maximum(norm, tiny), 1.0
  )


def _relative_gradient(at_optimum: Moments, elsewhere: Moments) -> float:
  """Norm of the first loss's mean gradient at the optimum over that elsewhere; 1 for a loss without gradient."""
  usual = jnp.mean(jnp.linalg.norm(elsewhere.mean[:, 0], axis=-1))
  return float(jnp.where(usual > 0, jnp.linalg.norm(at_optimum.mean[0]) / usual, 1.0))


def _yes(right: bool) -> str:
  return "right" if right else "WRONG"
