"""Checkpoints of a run: the whole train state and the host's data, saved and restored together.

A checkpoint is a folder STEP with the items `params` (the policy, or adapters), `rest` (optimizer, multipliers and
their controller, averages, rng) and `host` (JSON). The folder gets its name only after all of it is written. The host
item also lists every leaf's shape, and a checksum of the bits of all leaves. It detects damage on any storage, and
shows that resharded arrays are unchanged.

Only proof of damage (`checksums`) moves a checkpoint aside. Any other failure, such as a read error or too little
memory, is raised with its own message, and nothing is moved.
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any
import warnings

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from qempo_jax import paths
from qempo_jax.errors import InputError
from qempo_jax.train import checkpoint_reading
from qempo_jax.train import checksums
from qempo_jax.train.checksums import Damaged
from qempo_jax.train.state import TrainState

ASIDE = "damaged-"  # Prefix of the step in the folder name of a damaged checkpoint.


class Checkpoints:
  """The checkpoints of one run: the newest ones, and the best.

  The best has the highest entropy among those that meet the constraints. If none does, the best has the smallest
  `shortfall`. Among equals it is the newest.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    keep: int,
    asynchronous: bool = True,
    read_only: bool = False,
    note: Callable[[str], None] = warnings.warn,
  ):
    """Opens a folder of checkpoints.

    Args:
      folder: created if absent; gs://BUCKET/FOLDER is left to Orbax.
      keep: number of newest checkpoints to keep, besides the best.
      asynchronous: write in the background of training.
      read_only: never write, move or clean up anything.
      note: called with a message about each skipped checkpoint.

    Raises:
      InputError: the folder cannot be created or read.
    """
    self._note, self._read_only, self._keep, self._held = note, read_only, max(keep, 1), None
    self._qualities: dict[int, dict[str, float] | None] = {}
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self,
      enable_async_checkpointing=asynchronous,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
      # Where a folder cannot be made, Orbax's threads that wait for it would keep the process for five minutes.
      async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )
    # No compression: weights hardly shrink, and it would take CPU time from the steps.
    trees = {item: checksums.TreeHandler(self._check, use_compression=False) for item in ("params", "rest")}
    handlers = trees | {"host": ocp.JsonCheckpointHandler()}
    self.folder = folder if "://" in str(folder) else os.path.abspath(folder)
    try:
      self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
      if not read_only:
        self._hold()
    except (OSError, ValueError) as error:
      raise InputError(
        f"the checkpoints in {self.folder} cannot be opened ({checkpoint_reading.first_line(error)})"
      ) from error

  def steps(self) -> list[int]:
    """Steps that can be restored, ascending, without one that is still being written."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, host: dict[str, Any], quality: dict[str, float] | None = None) -> None:
    """Saves the state after its step, with JSON-able data of the host.

    Returns once the arrays are copied; the next call, `wait` and `close` wait until they are on disk.

    Args:
      state: the train state.
      host: other data that a resumed run needs.
      quality: `entropy` in nats and `shortfall`, 0 if every constraint is met; None if nothing was measured.

    Raises:
      InputError: this checkpoint, or the one before, could not be written; earlier ones are intact.
    """
    params, rest = _split(state)
    shapes = checkpoint_reading.shapes(params, "params") | checkpoint_reading.shapes(rest, "rest")
    about = {"format": checkpoint_reading.FORMAT, "leaves": shapes, "quality": quality}
    about["bits"] = {"params": checksums.bits(params), "rest": checksums.bits(rest)}
    items = ocp.args.Composite(
      params=checksums.TreeSave(params),
      rest=checksums.TreeSave(rest),
      host=ocp.args.JsonSave(checksums.seal({"about": about, "host": host})),
    )
    step = int(state.step)
    self._qualities[step] = quality
    self._hold()
    self._written(lambda: self._manager.save(step, args=items), step)

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest whole checkpoint, in the shapes and shardings of `state`, or None if there is none.

    A checkpoint with proven damage is moved aside, to `damaged-STEP`, and `note` is called.

    Raises:
      InputError: a checkpoint could not be read; or all are damaged; or one belongs to another model, optimizer or
        format.
    """
    params, rest = map(_abstract, _split(state))
    found = self._newest({"params": params, "rest": rest})
    if found is None:
      return None
    _, items, host = found
    rest = items["rest"]
    return rest.replace(params=items["params"], rng=jax.random.wrap_key_data(rest.rng)), host

  def restore_params(self, params, *, step: int | None = None, best: bool = False) -> tuple[Any, int] | None:
    """Restores only the trainable parameters; optimizer state is not read.

    Args:
      params: arrays, or their shapes with shardings.
      step: this checkpoint instead of the newest whole one.
      best: the best checkpoint instead of the newest whole one.

    Returns:
      (parameters in those shapes and shardings, their step), or None if there is no checkpoint.

    Raises:
      InputError: as `restore`; or the requested checkpoint is absent or damaged.
    """
    step = self.best_step() if best else step
    targets = {"params": _abstract(params)}
    if step is None:
      found = self._newest(targets)
      return found and (found[1]["params"], found[0])
    others = ", ".join(str(other) for other in self.steps() if other != step) or "no other"
    if step not in self.steps():
      raise InputError(f"there is no checkpoint of step {step} in {self.folder}: choose one of {others}")
    try:
      return checkpoint_reading.read(self._manager, self.folder, step, targets)[0]["params"], step
    except Damaged as error:
      raise InputError(f"checkpoint {self.folder}/{step} is damaged ({error}): choose one of {others}") from error

  def check_start(self) -> None:
    """Raises InputError if all checkpoints are damaged: a run starts anew beside them only on request."""
    folder = epath.Path(self.folder)
    damaged = sorted(path.name for path in folder.iterdir() if path.name.startswith(ASIDE)) if folder.exists() else []
    if damaged and not self.steps():
      raise InputError(
        f"{folder} holds {', '.join(damaged)} and no whole checkpoint: to start at step 1, remove the damaged ones, or"
        " use another workdir"
      )

  def best_step(self) -> int | None:
    """Step of the best checkpoint; None if nothing was measured."""
    return self._best_of(self.steps())

  def quality(self, step: int) -> dict[str, float] | None:
    """Quality that ranks the checkpoint; None if nothing was measured, or its record is damaged.

    Raises:
      InputError: the record could not be read.
    """
    if step not in self._qualities:
      try:
        self._qualities[step] = checkpoint_reading.record(self._path(step))[0]["quality"]
      except Damaged as error:
        self._note(f"checkpoint {self.folder}/{step} is damaged ({error}), and cannot be the best")
        self._qualities[step] = None
    return self._qualities[step]

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Orbax's preservation policy: True for each checkpoint to keep, oldest first, called at every save."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept, readable = set(sorted(steps)[-self._keep :]), []
    for step in steps:
      try:
        self.quality(step)
        readable.append(step)
      except InputError:  # It may be the best: an unreadable checkpoint is not deleted.
        kept.add(step)
    kept.add(self._best_of(readable))
    return [step in kept for step in steps]

  def _hold(self) -> None:
    """Holds the folder, anew where it was removed; raises InputError where another took its place."""
    self._check()
    if "://" in str(self.folder):
      return
    folder = pathlib.Path(self.folder)
    if self._held is None or not folder.exists():
      folder.mkdir(parents=True, exist_ok=True)
      self._held = paths.HeldFolder(folder)

  def _check(self) -> None:
    if self._held is not None:
      self._held.check()

  def wait(self) -> None:
    """Waits until everything is on disk; raises InputError if something could not be written."""
    self._written(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits as `wait` does, then releases the folder."""
    try:
      self.wait()
    finally:
      self._written(self._manager.close)  # It raises the error of a failed save once more.

  def _best_of(self, steps) -> int | None:
    measured = [step for step in steps if self.quality(step)]
    return max(measured, key=lambda step: (rank(self.quality(step)), step), default=None)

  def _written(self, write: Callable, step: int | None = None):
    try:
      write()
    except Exception as error:  # Each storage raises its own exceptions; none of them is a bug of the caller.
      whole = [other for other in self.steps() if other != step and self._path(other).exists()]
      earlier = f"that of step {whole[-1]} is intact" if whole else "there is no earlier one"
      raise InputError(
        f"a checkpoint could not be written to {self.folder} ({checkpoint_reading.first_line(error)}); {earlier}: free"
        " space there or make it writable, then start the same command again"
      ) from error

  def _newest(self, targets: dict[str, Any]):
    """(step, items, host) of the newest whole checkpoint."""
    steps = self.steps()
    for step in reversed(steps):
      try:
        return step, *checkpoint_reading.read(self._manager, self.folder, step, targets)
      except Damaged as error:
        self._set_aside(step, error)
    if steps:
      raise InputError(f"none of the checkpoints in {self.folder} is whole; start anew in another workdir")
    self.check_start()
    return None

  def _path(self, step: int) -> epath.Path:
    return epath.Path(self.folder) / str(step)

  def _set_aside(self, step: int, error: Damaged) -> None:
    path, aside = self._path(step), epath.Path(self.folder) / f"{ASIDE}{step}"
    if not self._read_only:
      if jax.process_index() == 0:
        while aside.exists():
          aside = aside.with_name(f"{aside.name}-again")
        try:
          path.rename(aside)
        except OSError as reason:
          raise InputError(
            f"checkpoint {path} is damaged ({error}) and could not be moved aside"
            f" ({checkpoint_reading.first_line(reason)}): move it"
          ) from reason
      _everyone(f"{ASIDE}{step}")
      self._manager.reload()
    kept = "" if self._read_only else f", now {aside},"
    self._note(f"checkpoint {path}{kept} is damaged ({error}); going back to the one before")


def rank(quality: dict[str, float]) -> tuple[bool, float]:
  """Sort key of checkpoints: those that meet the constraints by entropy, the others below them by shortfall."""
  met = quality["shortfall"] <= 0
  return met, quality["entropy"] if met else -quality["shortfall"]


def _split(state: TrainState):
  """(params, the rest with raw random bits)."""
  rng = state.rng if state.rng.dtype == jnp.uint32 else jax.random.key_data(state.rng)
  return state.params, state.replace(params=None, rng=rng)


def _abstract(tree):
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _everyone(name: str) -> None:
  """Waits for all processes of the run."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
