"""Saving and restoring a run: the whole train state and what the host remembers, together or not at all."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from qempo_jax.errors import InputError
from qempo_jax.train_state import TrainState


class Checkpoints:
  """The checkpoints of one run, newest last."""

  def __init__(self, folder: pathlib.Path, *, keep: int):
    """Opens a folder of checkpoints.

    Args:
      folder: made if absent.
      keep: how many of the newest to keep.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

  def save(self, state: TrainState, host: dict[str, Any]) -> None:
    """Saves the state after its step, with JSON-able data of the host; returns when it is on disk."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(_raw(state)), host=ocp.args.JsonSave(host))
    self._manager.save(int(state.step), args=items)
    self._manager.wait_until_finished()

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint in the shapes and shardings of `state`, or None where there is none.

    Raises:
      InputError: the newest checkpoint cannot be read, or belongs to another model or optimizer.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _raw(state))
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
    try:
      found = self._manager.restore(step, args=items)
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise InputError(
          f"checkpoint {self._manager.directory}/{step} cannot be restored ({str(error).splitlines()[0]});"
          " remove that folder to go back to the one before"
      ) from error
    restored = found["state"]
    return restored.replace(rng=jax.random.wrap_key_data(restored.rng)), found["host"]

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.close()


def _raw(state: TrainState) -> TrainState:
  return state.replace(rng=jax.random.key_data(state.rng))
