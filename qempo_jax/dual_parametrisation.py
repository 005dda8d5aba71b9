"""Stored forms of a multiplier: the multiplier, its logarithm, or its inverse softplus.

Dual parameters are `{name: {leaf: scalar}}`; the leaf's name tells the stored form.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp

from qempo_jax.errors import InputError

DualParams = dict[str, dict[str, jax.Array]]

LEAF_OF = {"linear": "multiplier", "log": "log_multiplier", "softplus": "softplus_multiplier"}

_FROM_LEAF = {
  "multiplier": lambda leaf: leaf,
  "log_multiplier": jnp.exp,
  "softplus_multiplier": jax.nn.softplus,
}
_TO_LEAF = {
  "multiplier": lambda multiplier: multiplier,
  "log_multiplier": lambda multiplier: _math_module(multiplier).log(multiplier),
  "softplus_multiplier": lambda multiplier: (
    multiplier + _math_module(multiplier).log(-_math_module(multiplier).expm1(-multiplier))
  ),
}


def init_dual_params(
  initial: Mapping[str, float | jax.Array], *, parametrisation: str | Mapping[str, str] = "linear"
) -> DualParams:
  """Dual parameters with the given initial multipliers.

  `linear` stores the multiplier, `log` its logarithm and `softplus` the s of multiplier = log(1 + e^s). The last
  two never reach 0, and need a positive initial value.

  Args:
    initial: multiplier of each constraint, in units of the objective per unit of the constraint. A traced value, as in
      a sweep under `jax.vmap`, is not checked.
    parametrisation: one of `linear`, `log`, `softplus`, for all constraints or by name.

  Returns:
    `{name: {leaf: float32 scalar}}`, the leaf being `multiplier`, `log_multiplier` or `softplus_multiplier`.

  Raises:
    InputError: the parametrisation is unknown, or cannot hold the initial value.
  """
  return {
    name: _init_one(name, scalar(value, f"initial multiplier of {name!r}"), for_name(parametrisation, name))
    for name, value in initial.items()
  }


def _init_one(name: str, value: float | jax.Array, parametrisation: str) -> dict[str, jax.Array]:
  if parametrisation not in LEAF_OF:
    raise InputError(f"unknown parametrisation {parametrisation!r} of {name!r}: choose one of {', '.join(LEAF_OF)}")
  positive = parametrisation != "linear"
  if is_concrete(value) and (not math.isfinite(value) or value < 0 or (positive and value == 0)):
    least = "positive" if positive else "at least 0"
    raise InputError(f"initial multiplier of {name!r} is {value}: a {parametrisation} multiplier must be {least}")
  leaf = LEAF_OF[parametrisation]
  return {leaf: jnp.array(_TO_LEAF[leaf](value), jnp.float32)}  # A copy, which can be donated.


def multipliers(dual_params: DualParams) -> dict[str, jax.Array]:
  """Multiplier of each constraint, a scalar by name."""
  return {name: _FROM_LEAF[leaf](value) for name, leaf, value in items(dual_params)}


def items(dual_params: DualParams) -> list[tuple[str, str, jax.Array]]:
  """(name, leaf name, stored value) of each multiplier."""
  return [(*names_of(path), value) for path, value in jax.tree_util.tree_leaves_with_path(dual_params)]


def names_of(path: tuple) -> tuple[str, str] | None:
  """(constraint, leaf name) at the end of a pytree path of dual parameters or of a state; None for other paths."""
  keys = [getattr(key, "key", None) for key in path[-2:]]
  return tuple(keys) if len(keys) == 2 and keys[1] in _FROM_LEAF else None


def leaf_bounds(
  leaf: str, *, floor: float | jax.Array, cap: float | jax.Array
) -> tuple[float | jax.Array, float | jax.Array]:
  """Bounds of a stored leaf: [0, cap] for a linear multiplier, [floor, cap] for one that cannot be 0."""
  low = 0.0 if leaf == "multiplier" else _TO_LEAF[leaf](floor)
  return low, _TO_LEAF[leaf](cap)


def _math_module(value: float | jax.Array) -> Any:
  """`math` (double precision) for a number, `jnp` for a traced value."""
  return math if is_concrete(value) else jnp


def is_concrete(value: Any) -> bool:
  """True for a number, False for a traced value."""
  return not isinstance(value, jax.core.Tracer)


def scalar(value: Any, what: str) -> float | jax.Array:
  """A setting as a float; a traced setting is returned unchanged.

  Args:
    value: a number, an array of shape [], or a tracer of one.
    what: name of the setting in error messages.

  Raises:
    InputError: the value is not a single number.
  """
  if (shape := getattr(value, "shape", ())) != ():
    raise InputError(f"{what} has shape {tuple(shape)}: give one number; jax.vmap maps over several")
  try:
    return float(value) if is_concrete(value) else value
  except (TypeError, ValueError) as e:
    raise InputError(f"{what} is {value!r}: give a number") from e


def for_name(setting: Any, name: str) -> Any:
  """One constraint's part of a setting that is given once for all, or by name."""
  if not isinstance(setting, Mapping):
    return setting
  if name not in setting:
    raise InputError(f"no setting for constraint {name!r}: the mapping names {', '.join(sorted(setting)) or 'nothing'}")
  return setting[name]
