"""Check that a loss optimises its stated objective, by exact enumeration instead of sampling."""

from collections.abc import Callable
import functools

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from qempo_jax import advantages
from qempo_jax.coherent import gate
from qempo_jax.errors import InputError
from qempo_jax.testing import mistakes
from qempo_jax.testing.enumerable import Params
from qempo_jax.testing.expectation import Moments
from qempo_jax.testing.expectation import Pair
from qempo_jax.testing.expectation import Samples
from qempo_jax.testing.expectation import flat_gradient
from qempo_jax.testing.expectation import group_moments
from qempo_jax.testing.expectation import pair_moments
from qempo_jax.testing.padding import COUNTS
from qempo_jax.testing.padding import use_of_padding
from qempo_jax.testing.pair_mistakes import explain_pairs
from qempo_jax.testing.problems import Problem
from qempo_jax.testing.problems import random_problem
from qempo_jax.testing.report import CheckReport


def check_loss(
  loss: Callable[[Samples], Array] | Callable[[Pair], Array],
  *,
  alpha: float,
  beta: float,
  inputs: str = "group",
  group_size: int = 3,
  behaviour: str = "policy",
  threshold: float | None = None,
  problem: Problem | None = None,
  tolerance: float = 1e-4,
) -> CheckReport:
  """Checks a loss against J(pi) = E[r] + alpha H(pi) + beta E[log q] on a problem small enough to enumerate.

  With a threshold tau the objective is that of QEMPO-C, J(pi) = E[r] + alpha H(pi) + beta E[1{r < tau} log q], where
  alpha = 1 / lambda and beta = nu / lambda.

  All groups (or pairs) are summed over, in double precision: the answer has no sampling error.

      report = check_loss(my_loss, alpha=0.5, beta=0.2)      # my_loss(samples) -> scalar
      print(report)

  Padding holds arbitrary finite values, so that a loss that forgets `samples.mask` is not ok.

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
    threshold: tau, the least reward of an acceptable sample, which the coherence constraint leaves alone; None for a
      reference term on every sample. For groups alone: a `Pair` has no rewards.
    problem: enumerable problem; None takes 15 sequences of at most 3 tokens and three prompts.
    tolerance: relative, of both checks.

  Returns:
    `CheckReport`.

  Raises:
    InputError: `inputs` or `behaviour` is not one of the two words, a threshold goes with pairs or has no rewards on one
      of its sides, or the loss returns something else than a scalar.
  """
  if inputs not in ("group", "pair") or behaviour not in ("policy", "old"):
    raise InputError('inputs is "group" or "pair", behaviour is "policy" or "old"')
  with jax.enable_x64(True):
    problem = default_problem() if problem is None else problem
    if threshold is not None:
      _check_threshold(threshold, inputs, problem)
    if inputs == "pair":
      return _check_pairs(loss, problem, alpha, beta, tolerance)
    return _check_groups(loss, problem, alpha, beta, threshold, group_size, behaviour, tolerance)


@functools.cache
def default_problem() -> Problem:
  """The problem of `check_loss`: 3 tokens with EOS, at most 3 of them, 3 prompts, 3 random policies."""
  with jax.enable_x64(True):
    return random_problem(jax.random.key(0), vocab_size=3, max_length=3, num_prompts=3, num_points=3)


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


def _check_groups(loss, problem, alpha, beta, threshold, group_size, behaviour, tolerance) -> CheckReport:
  fixed = jnp.mean(problem.fixed_rewards(beta=beta, threshold=threshold), axis=0)

  def objective(params):
    return problem.policy.objective(params, fixed, problem.ref_log_probs, alpha=alpha, beta=0.0)

  def advantage(s):
    ref = s.ref_log_probs if threshold is None else gate(s.rewards, threshold=threshold) * s.ref_log_probs
    return advantages.leave_one_out(advantages.shaped_rewards(s.rewards, s.log_probs, ref, alpha=alpha, beta=beta))

  token = jnp.zeros((group_size, problem.policy.space.max_length))
  _check_scalar(loss, Samples(*[token] * 5, mask=token > 0, rewards=token[:, 0]))
  both, kind = [loss, loss_of_score_weights(advantage)], dict(group_size=group_size, behaviour=behaviour)
  moments = group_moments(both, problem, padding="garbage", **kind)
  found = _at_points(moments, problem)
  optimum = problem.optimum(fixed, alpha=alpha, beta=0.0)
  at_optimum = moments(optimum)
  stationary = _relative_gradient(at_optimum, found)
  mean = found.mean[:, 0].ravel()
  scale, error = _fit(mean, jnp.concatenate([flat_gradient(objective, params) for params in problem.params]))
  right = bool(error < tolerance)
  finite = _finite(found, at_optimum)
  padding = use_of_padding(loss, problem, group_size=group_size, tolerance=tolerance)
  flipped = stationary < tolerance and not right and _leaves(moments, optimum, problem)
  right_without_padding = stationary < tolerance and (right or behaviour == "old" and not flipped)
  ok = right_without_padding and finite == 1 and padding != COUNTS

  def names():
    if padding == COUNTS:
      yield mistakes.PADDING
    if finite < 1:
      yield mistakes.NAN
    elif flipped and behaviour == "old":
      yield mistakes.FLIPPED
    elif not right_without_padding:
      cleaned = _at_points(group_moments(both[:1], problem, **kind), problem) if padding == COUNTS else found
      yield from mistakes.explain(
        cleaned.mean[:, 0].ravel(),
        problem,
        alpha=alpha,
        beta=beta,
        threshold=threshold,
        tolerance=10 * tolerance,
        **kind,
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
    mistakes=tuple(names()),
    padding=padding,
    finite=finite,
  )


def _check_pairs(loss, problem, alpha, beta, tolerance) -> CheckReport:
  _check_scalar(loss, Pair(*jnp.zeros(4), *jnp.ones(2, int)))
  moments = pair_moments([loss], problem)
  found = _at_points(moments, problem)
  optimum = problem.optimum(problem.rewards[0], alpha=alpha, beta=beta)
  at_optimum = moments(optimum)
  stationary, finite = _relative_gradient(at_optimum, found), _finite(found, at_optimum)
  if finite < 1:
    names = (mistakes.NAN,)
  elif stationary < tolerance:
    names = (mistakes.FLIPPED,) if _leaves(moments, optimum, problem) else ()
  else:
    mean = found.mean[:, 0].ravel()
    names = explain_pairs(mean, problem, alpha=alpha, beta=beta, tolerance=10 * tolerance)
  ok = stationary < tolerance and not names
  return CheckReport(
    ok=ok,
    gradient_is_right=None,
    gradient_error=None,
    scale=None,
    stationary_is_right=stationary < tolerance,
    stationary_gradient=stationary,
    variance=float(jnp.mean(found.variance)),
    reference_variance=None,
    mistakes=names,
    finite=finite,
  )


def _check_threshold(threshold: float, inputs: str, problem: Problem) -> None:
  """Refuses a threshold for pairs, or one with all rewards of a prompt on one side."""
  if inputs == "pair":
    raise InputError('threshold is for inputs="group": a pair has no rewards to compare with it')
  low, high = float(jnp.max(jnp.min(problem.rewards, axis=1))), float(jnp.min(jnp.max(problem.rewards, axis=1)))
  if not low < threshold <= high:
    raise InputError(
      f"threshold={threshold:g} leaves a prompt without acceptable or without unacceptable responses: choose it above"
      f" {low:.3g} and up to {high:.3g}"
    )


def _check_scalar(loss: Callable[..., Array], example: Samples | Pair) -> None:
  """Refuses a loss that returns anything but one real number."""
  returned = jax.eval_shape(loss, example)
  if not isinstance(returned, jax.ShapeDtypeStruct):
    raise InputError(f"the loss returned a {type(returned).__name__}: check_loss takes one scalar; leave the rest out")
  if returned.shape != ():
    raise InputError(f"the loss returned an array of shape {returned.shape}: return one scalar, such as jnp.mean of it")
  if not jnp.issubdtype(returned.dtype, jnp.floating):
    raise InputError(f"the loss returned {returned.dtype}: return one real number, which can be differentiated")


def _leaves(moments: Callable[..., Moments], optimum: Params, problem: Problem) -> bool:
  """True if the loss, stationary at the optimum, moves away from it nearby: it is at a maximum there."""
  away = jax.tree.map(lambda at, other: at + 0.1 * other, optimum, problem.params[0])
  return bool(moments(away).mean[0] @ ravel_pytree(problem.params[0])[0] > 0)


def _finite(found: Moments, at_optimum: Moments) -> float:
  """Smallest probability of a finite loss and gradient, which is 1 up to rounding."""
  least = float(jnp.minimum(jnp.min(found.finite[:, 0]), at_optimum.finite[0]))
  return 1.0 if least > 1 - 1e-9 else least


def _at_points(moments: Callable[..., Moments], problem: Problem) -> Moments:
  """Moments at every point of the problem: [points, K, D] and [points, K]."""
  return jax.tree.map(lambda *x: jnp.stack(x), *map(moments, problem.params))


def _fit(found: Array, expected: Array) -> tuple[Array, Array]:
  """Best multiple c >= 0 of `expected`, and |found - c expected| / |found|; 1 for a zero gradient."""
  tiny = jnp.finfo(found.dtype).tiny
  scale = jnp.maximum(found @ expected / jnp.maximum(expected @ expected, tiny), 0.0)
  norm = jnp.linalg.norm(found)
  return scale, jnp.where(norm > 0, jnp.linalg.norm(found - scale * expected) / jnp.maximum(norm, tiny), 1.0)


def _relative_gradient(at_optimum: Moments, elsewhere: Moments) -> float:
  """Norm of the first loss's mean gradient at the optimum over that elsewhere; 1 for a loss without gradient."""
  usual = jnp.mean(jnp.linalg.norm(elsewhere.mean[:, 0], axis=-1))
  return float(jnp.where(usual > 0, jnp.linalg.norm(at_optimum.mean[0]) / usual, 1.0))
