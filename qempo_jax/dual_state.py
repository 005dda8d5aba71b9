"""State of the multipliers' controllers: its fields, its counts, and holding unmeasured constraints."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qempo_jax.dual_parametrisation import DualParams
from qempo_jax.dual_parametrisation import items
from qempo_jax.dual_parametrisation import names_of
from qempo_jax.errors import InputError


class PIControllerState(NamedTuple):
  """State of `pi_controller`; the trees have the structure of the dual parameters.

  Attributes:
    count: updates so far, int32.
    integral: integral part of each controller, in units of the stored leaf.
    average: exponential moving average of the violations, before bias correction.
    measured: finite measurements so far, int32.
    skipped: updates without a finite measurement, int32.
  """

  count: jax.Array
  integral: DualParams
  average: DualParams
  measured: DualParams
  skipped: DualParams


def hold_unmeasured(measured: Mapping[str, jax.Array], new: optax.OptState, old: optax.OptState) -> optax.OptState:
  """Selects `old` for the parts of unmeasured constraints and `new` for the rest, for any controller.

  A leaf belongs to a constraint if its path ends in the constraint's name and leaf name, as in Adam's moments. A
  `PIControllerState` holds and counts by itself.

  Args:
    measured: a boolean by name.
    new: dual parameters, or a controller's state, after an update.
    old: the same before it.
  """

  def pick(path, after, before):
    names = names_of(path)
    if isinstance(after, PIControllerState) or names is None or names[0] not in measured:
      return after
    return jnp.where(measured[names[0]], after, before)

  return jax.tree_util.tree_map_with_path(pick, new, old, is_leaf=_is_pi_state)


def skipped(dual_state: optax.OptState) -> dict[str, jax.Array]:
  """Updates of each constraint without a finite measurement, int32 by name.

  Args:
    dual_state: state of `pi_controller` or `plain_ascent`, also within optax's chains and wrappers.

  Returns:
    A scalar by constraint name.

  Raises:
    InputError: the state contains no such controller.
  """
  return _counts(dual_state, "skipped")


def measured(dual_state: optax.OptState) -> dict[str, jax.Array]:
  """Finite measurements of each constraint so far, int32 by name; arguments as in `skipped`."""
  return _counts(dual_state, "measured")


def _counts(dual_state: optax.OptState, field: str) -> dict[str, jax.Array]:
  states = [state for state in jax.tree.leaves(dual_state, is_leaf=_is_pi_state) if _is_pi_state(state)]
  if not states:
    raise InputError("the state counts no measurements: pass the state of pi_controller or plain_ascent")
  return {name: count for state in states for name, _, count in items(getattr(state, field))}


def _is_pi_state(node) -> bool:
  return isinstance(node, PIControllerState)
