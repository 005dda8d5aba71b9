"""State of the multipliers' controllers: what each constraint keeps, its counts, and holding it still."""

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
    average: exponential moving average of the violations, not yet corrected for its start at 0.
    measured: finite measurements seen, int32.
    skipped: updates without one, because the constraint was left out or its value was not finite, int32.
  """

  count: jax.Array
  integral: DualParams
  average: DualParams
  measured: DualParams
  skipped: DualParams


def hold_unmeasured(measured: Mapping[str, jax.Array], new: optax.OptState, old: optax.OptState) -> optax.OptState:
  """Returns `new` with the parts of unmeasured constraints as they are in `old`, whatever the controller.

  A leaf belongs to a constraint if its path ends in its name and its leaf's, as a moment's of Adam does. A
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
  """Returns the updates without a finite measurement of each constraint, left out or not finite: int32 by name.

  Args:
    dual_state: state of `pi_controller`, `plain_ascent` or `augmented_lagrangian`, also within optax's chains and
      wrappers.

  Returns:
    A scalar by name of the constraint.

  Raises:
    InputError: there is none in it.
  """
  return _counts(dual_state, "skipped")


def measured(dual_state: optax.OptState) -> dict[str, jax.Array]:
  """Returns the finite measurements of each constraint so far, int32 by name; arguments as those of `skipped`."""
  return _counts(dual_state, "measured")


def _counts(dual_state: optax.OptState, field: str) -> dict[str, jax.Array]:
  states = [state for state in jax.tree.leaves(dual_state, is_leaf=_is_pi_state) if _is_pi_state(state)]
  if not states:
    raise InputError(
      "the state counts no measurements: give that of pi_controller, plain_ascent or augmented_lagrangian"
    )
  return {name: count for state in states for name, _, count in items(getattr(state, field))}


def _is_pi_state(node) -> bool:
  return isinstance(node, PIControllerState)
