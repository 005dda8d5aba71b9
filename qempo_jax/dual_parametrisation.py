"""How a multiplier is stored as a parameter: as itself, as its logarithm, or through a softplus.

Dual parameters are `{name: {leaf: scalar}}`; the leaf's name says what is stored.
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
  "log_multiplier": math.log,
  "softplus_multiplier": lambda multiplier: multiplier + math.log(-math.expm1(-multiplier)),
}


def init_dual_params(
  initial: Mapping[str, float], *, parametrisation: str | Mapping[str, str] = "linear"
) -> DualParams:
  """Returns dual parameters that give the named multipliers their initial values.

  `linear` stores the multiplier, `log` its logarithm and `softplus` the s of multiplier = log(1 + e^s). The last
  two never reach 0, and so need a positive initial value.

  Args:
    initial: multiplier of each constraint, in units of the objective per unit of the constraint.
    parametrisation: one of `linear`, `log`, `softplus`, for all constraints or by name.

  Returns:
    `{name: {leaf: float32 scalar}}`, the leaf being `multiplier`, `log_multiplier` or `softplus_multiplier`.

  Raises:
    InputError: an unknown parametrisation, or an initial value that it cannot hold.
  """
  return {
    name: _init_one(name, float(value), for_name(parametrisation, name))
    for name, value in initial.items()
  }


def _init_one(name: str, value: float, parametrisation: str) -> dict[str, jax.Array]:
  if parametrisation not in LEAF_OF:
    raise InputError(
      f"unknown parametrisation {parametrisation!r} of {name!r}: choose one of {', '.join(LEAF_OF)}"
    )
  positive = parametrisation != "linear"
  if not math.isfinite(value) or value < 0 or (positive and value == 0):
    least = "positive" if positive else "at least 0"
    raise InputError(
      f"initial multiplier of {name!r} is {value}: a {parametrisation} multiplier must be {least}"
    )
  leaf = LEAF_OF[parametrisation]
  return {leaf: jnp.asarray(_TO_LEAF[leaf](value), jnp.float32)}


def multipliers(dual_params: DualParams) -> dict[str, jax.Array]:
  """Returns the multiplier of each constraint, a scalar by name."""
  return {name: _FROM_LEAF[leaf](value) for name, leaf, value in items(dual_params)}


def items(dual_params: DualParams) -> list[tuple[str, str, jax.Array]]:
  """Returns (name, leaf name, stored value) of each multiplier."""
  return [(name, *leaves) for name, entry in dual_params.items() for leaves in entry.items()]


def leaf_bounds(leaf: str, *, floor: float, cap: float) -> tuple[float, float]:
  """Returns the bounds of a stored leaf: [0, cap] for a linear multiplier, [floor, cap] for one that cannot be 0."""
  low = 0.0 if leaf == "multiplier" else _TO_LEAF[leaf](floor)
  return low, math.inf if math.isinf(cap) else _TO_LEAF[leaf](cap)


def for_name(setting: Any, name: str) -> Any:
  """Returns one constraint's part of a setting that was given once for all or by name."""
  if not isinstance(setting, Mapping):
    return setting
  if name not in setting:
    raise InputError(
      f"no setting for constraint {name!r}: the mapping names {', '.join(sorted(setting)) or 'nothing'}"
    )
  return setting[name]
