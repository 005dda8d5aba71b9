"""Safeguarded Newton for one increasing scalar equation, with exact derivatives of the root."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class _Search(NamedTuple):
  point: jax.Array  # Next point to try.
  low: jax.Array  # Largest point known to be below the root, or a point below the lower end.
  high: jax.Array  # Smallest point known to be above the root, or a point above the upper end.
  step: jax.Array  # Length of the last step.
  best: jax.Array  # Point with the smallest residual so far.
  residual: jax.Array
  done: jax.Array
  evaluations: jax.Array


def increasing_root(
  function: Callable[[jax.Array], jax.Array],
  start: jax.Array,
  *,
  low: float = 0.0,
  high: float = jnp.inf,
  tolerance: jax.Array | float = 0.0,
  max_steps: int = 100,
) -> jax.Array:
  """Root of an increasing function on [low, high], or the nearest end.

      x <- x - f(x) / f'(x)     projected on [low, high]

  A Newton step that leaves the bracket of known signs, or is slow, is replaced by halving the bracket, or by doubling x
  while the bracket has no upper end. The result is `low` if f(low) >= 0 and `high` if f(high) <= 0: the projection of a
  multiplier. The root's derivative is exact, by implicit differentiation, in both modes; it is 0 at an end.

  Args:
    function: increasing, scalar to scalar, finite on [low, high].
    start: first point to try, scalar in [low, high]; the search has its dtype.
    low: lower end, finite.
    high: upper end.
    tolerance: the search ends at the first point with |f| within it.
    max_steps: most evaluations; after them the best point is returned.

  Returns:
    The root, a scalar.
  """

  def projected(point: jax.Array) -> jax.Array:
    """f, or at an end that is the root the distance from it: the root does not move there."""
    value = function(point)
    at_end = ((point <= low) & (value >= -tolerance)) | ((point >= high) & (value <= tolerance))
    return jnp.where(at_end, point - jax.lax.stop_gradient(point), value)

  def search(_: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    infinity = jnp.full_like(start, jnp.inf)
    state = _Search(
      point=start,
      low=jnp.full_like(start, low - 1),
      high=jnp.full_like(start, high + 1),
      step=infinity,
      best=start,
      residual=infinity,
      done=jnp.asarray(False),
      evaluations=jnp.zeros((), jnp.int32),
    )
    advance = lambda state: _advance(function, state, low, high, tolerance)
    return jax.lax.while_loop(lambda state: ~state.done & (state.evaluations < max_steps), advance, state).best

  return jax.lax.custom_root(projected, start, search, lambda tangent, value: value / tangent(jnp.ones_like(value)))


def _advance(
  function: Callable[[jax.Array], jax.Array],
  search: _Search,
  low_end: float,
  high_end: float,
  tolerance: float | jax.Array,
) -> _Search:
  """One evaluation: shrinks the bracket, then takes a Newton step or halves the bracket."""
  point = search.point
  value, slope = jax.jvp(function, (point,), (jnp.ones_like(point),))
  better = jnp.abs(value) <= search.residual
  low = jnp.where(value < 0, point, search.low)
  high = jnp.where(value > 0, point, search.high)

  unbounded = jnp.isinf(high)
  furthest = jnp.where(unbounded, 8 * point + 8, high_end)
  newton = jnp.clip(point - value / jnp.abs(slope), low_end, furthest)
  # An end is tried at most once: it is then the root, or bounds the bracket.
  to_end = (newton <= low_end) | (newton >= high_end)
  quick = unbounded | to_end | (jnp.abs(newton - point) <= 0.5 * search.step)
  trusted = (newton > low) & (newton < high) & quick  # False if the Newton step is NaN.
  inner_low, inner_high = jnp.maximum(low, low_end), jnp.minimum(high, high_end)
  middle = jnp.where(unbounded, 2 * point + 1, inner_low + 0.5 * (inner_high - inner_low))
  following = jnp.where(trusted, newton, middle)
  step = jnp.abs(following - point)

  # After a Newton step this short the error is about its square, below rounding, and the search ends.
  epsilon = jnp.finfo(point.dtype).eps
  last = trusted & (step <= epsilon**0.6 * jnp.abs(point))
  at_end = ((point <= low_end) & (value >= 0)) | ((point >= high_end) & (value <= 0))
  at_root = (jnp.abs(value) <= tolerance) | at_end
  collapsed = inner_high - inner_low <= epsilon * jnp.abs(inner_low)
  best = jnp.where(at_root, point, jnp.where(last, following, jnp.where(better, point, search.best)))
  residual = jnp.where(better, jnp.abs(value), search.residual)
  return _Search(following, low, high, step, best, residual, at_root | last | collapsed, search.evaluations + 1)
