"""Saving and restoring a run: the whole train state and what the host remembers, together or not at all.

A checkpoint is a folder STEP with the items `params` (the policy, or adapters), `rest` (optimizer, multipliers and
their controller, averages, rng) and `host` (JSON). It appears under its name only once all of it is written. The host's
item also lists every leaf's shape and a sum over the bits of all leaves, so that what was damaged on the way is noticed
whatever the storage checks itself, and what was resharded is known to be the same.
"""

from collections.abc import Callable
import json
import os
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from qempo_jax.errors import InputError
from qempo_jax.train_state import TrainState

FORMAT = 2


class Checkpoints:
  """The checkpoints of one run: the newest ones, and the best.

  The best is the one of highest entropy among those that meet the constraints; where none does, the one whose
  `shortfall` is smallest. Of equals the newest counts.
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
      folder: made if absent; gs://BUCKET/FOLDER is left to Orbax.
      keep: how many of the newest to keep, besides the best.
      asynchronous: write while the run goes on.
      read_only: never write, move or clean up anything.
      note: told about a checkpoint that is passed over.

    Raises:
      InputError: the folder cannot be made or read.
    """
    self._note, self._read_only, self._keep = note, read_only, max(keep, 1)
    self._qualities: dict[int, dict[str, float] | None] = {}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=self,
        enable_async_checkpointing=asynchronous,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
    )
    # Weights hardly shrink, and what compressing costs a CPU is the step's own time.
    trees = {item: ocp.PyTreeCheckpointHandler(use_compression=False) for item in ("params", "rest")}
    handlers = trees | {"host": ocp.JsonCheckpointHandler()}
    self.folder = folder if "://" in str(folder) else os.path.abspath(folder)
    try:
      self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
    except (OSError, ValueError) as error:
      raise InputError(f"the checkpoints in {self.folder} cannot be opened ({_first_line(error)})") from error

  def steps(self) -> list[int]:
    """Steps that can be restored, ascending; one that is still being written is not among them."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, host: dict[str, Any], quality: dict[str, float] | None = None) -> None:
    """Saves the state after its step, with JSON-able data of the host.

    Returns once the arrays are copied; the next call, `wait` and `close` wait until they are on disk.

    Args:
      state: the run.
      host: whatever else a resumed run needs.
      quality: `entropy` in nats and `shortfall`, 0 where every constraint is met; None where nothing was measured.

    Raises:
      InputError: this checkpoint, or the one before, could not be written; earlier ones stand.
    """
    params, rest = _split(state)
    shapes = _shapes(params, "params") | _shapes(rest, "rest")
    about = {"format": FORMAT, "leaves": shapes, "quality": quality}
    about["bits"] = {"params": _bits(params), "rest": _bits(rest)}
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params),
        rest=ocp.args.PyTreeSave(rest),
        host=ocp.args.JsonSave({"about": about, "host": host}),
    )
    step = int(state.step)
    self._qualities[step] = quality
    self._written(lambda: self._manager.save(step, args=items), step)

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint that is whole, in the shapes and shardings of `state`, or None where there is none.

    A damaged one is moved aside, to `damaged-STEP`, and `note` is told so.

    Raises:
      InputError: checkpoints are there but none is whole, or one belongs to another model, optimizer or format.
    """
    params, rest = map(_abstract, _split(state))
    shapes = _shapes(params, "params") | _shapes(rest, "rest")
    found = self._newest(shapes, params=params, rest=rest)
    if found is None:
      return None
    _, items, host = found
    rest = items["rest"]
    return rest.replace(params=items["params"], rng=jax.random.wrap_key_data(rest.rng)), host

  def restore_params(self, params, *, best: bool = False) -> tuple[Any, int] | None:
    """What is trained alone, without the memory of an optimizer.

    Args:
      params: arrays, or their shapes with shardings.
      best: the best checkpoint instead of the newest.

    Returns:
      (parameters in those shapes and shardings, the step they are of), or None where there is no checkpoint.

    Raises:
      InputError: as `restore`.
    """
    only = self.best_step() if best else None
    found = self._newest(_shapes(params, "params"), only, params=_abstract(params))
    return found and (found[1]["params"], found[0])

  def best_step(self) -> int | None:
    """The step of the best checkpoint; None where nothing was measured."""
    return self._best_of(self.steps())

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Which checkpoints stay; Orbax asks at every save, oldest first."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self._keep :], self._best_of(steps)}
    return [step in kept for step in steps]

  def wait(self) -> None:
    """Returns once everything is on disk; raises InputError where something could not be written."""
    self._written(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits likewise, and lets go of the folder."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _best_of(self, steps) -> int | None:
    for step in steps:
      if step not in self._qualities:
        try:
          self._qualities[step] = self._read_host(step)["about"]["quality"]
        except Exception:  # damaged, so the best of nothing; `restore` says so
          self._qualities[step] = None
    measured = [step for step in steps if self._qualities[step]]
    return max(measured, key=lambda step: (rank(self._qualities[step]), step), default=None)

  def _written(self, write: Callable, step: int | None = None):
    try:
      write()
    except Exception as error:  # Each storage has its own; none of them is the caller's mistake in a program.
      good = [there for there in self.steps() if there != step and _is_there(self.folder, there)]
      stands = f"that of step {good[-1]} stands" if good else "there is no earlier one"
      raise InputError(
          f"a checkpoint could not be written to {self.folder} ({_first_line(error)}); {stands}: free space there or"
          " make it writable, then start the same command again"
      ) from error

  def _newest(self, shapes: dict[str, Any], only: int | None = None, **targets):
    """(step, items, host) of the newest checkpoint that is whole."""
    steps = self.steps() if only is None else [only]
    for step in reversed(steps):
      try:
        about, host = self._host(step)
        self._check(step, about, shapes)
        arguments = {name: _restore_as(target) for name, target in targets.items()}
        items = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        for name in targets:
          if _bits(items[name]) != about["bits"][name]:
            raise ValueError(f"the bits of {name} are not those that were saved")
        return step, items, host
      except InputError:
        raise
      except Exception as error:  # Whatever a storage raises on damaged files, the one before may be whole.
        self._pass_over(step, error)
    if steps:
      raise InputError(f"none of the checkpoints in {self.folder} is whole; start anew in another workdir")
    return None

  def _host(self, step: int):
    found = self._read_host(step)
    if not isinstance(found, dict) or "about" not in found or found["about"].get("format") != FORMAT:
      what = "one with the items `state` and `host`, format 1"
      if isinstance(found, dict) and "about" in found:
        what = f"format {found['about'].get('format')}"
      raise InputError(
          f"checkpoint {self.folder}/{step} is {what}, and this version reads format {FORMAT} alone: finish that run with"
          " the version that began it, or use another workdir"
      )
    return found["about"], found["host"]

  def _read_host(self, step: int):
    return json.loads(_path(f"{self.folder}/{step}/host/metadata").read_text())

  def _check(self, step: int, about: dict[str, Any], shapes: dict[str, Any]) -> None:
    there = {name: leaf for name, leaf in about["leaves"].items() if _item(name) in set(map(_item, shapes))}
    for name in [*shapes, *there]:
      if shapes.get(name) != there.get(name):
        raise InputError(
            f"checkpoint {self.folder}/{step} is of another model or optimizer: {name} is {there.get(name, 'absent')}"
            f" there and {shapes.get(name, 'absent')} here; use the config that it was made with, or another workdir"
        )

  def _pass_over(self, step: int, error: Exception) -> None:
    place = f"{self.folder}/{step}"
    aside = f"{self.folder}/damaged-{step}"
    if not self._read_only:
      if jax.process_index() == 0:
        while _exists(aside):
          aside += "-again"
        _path(place).rename(aside)
      _everyone(f"damaged-{step}")
      self._manager.reload()
    kept = "" if self._read_only else f", now {aside},"
    self._note(f"checkpoint {place}{kept} is damaged ({_first_line(error)}); going back to the one before")


def rank(quality: dict[str, float]) -> tuple[bool, float]:
  """What is compared between checkpoints: those that meet the constraints by entropy, others by shortfall."""
  met = quality["shortfall"] <= 0
  return met, quality["entropy"] if met else -quality["shortfall"]


def _bits(tree) -> int:
  """Sum of all bits as numbers, modulo 2^32: exact, so the same under any sharding.

  Each process sums what its own devices hold, each part of an array once; on accelerators the devices themselves do.
  """
  parts = []
  for index, leaf in enumerate(map(jnp.asarray, jax.tree.leaves(tree))):
    own = [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]
    parts += [(2 * index + 1, _host_bits(part) if _is_on_cpu(part) else _device_bits(part)) for part in own]
  total = sum(weight * int(part) for weight, part in parts) % 2**32
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    total = int(np.sum(multihost_utils.process_allgather(np.uint32(total)), dtype=np.uint32))
  return total


def _host_bits(array):
  """XLA's sum of integers takes about ten times as long on a CPU."""
  flat = np.ascontiguousarray(array).reshape(-1)
  return np.sum(flat.view(_UNSIGNED.get(flat.dtype.itemsize, np.uint32)), dtype=np.uint32)


@jax.jit
def _device_bits(array):
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  unsigned = jax.lax.bitcast_convert_type(array, _UNSIGNED.get(array.dtype.itemsize, np.uint32))
  return jnp.sum(unsigned, dtype=jnp.uint32)


_UNSIGNED = {1: np.uint8, 2: np.uint16}  # what is wider is taken as one or two of 4 bytes


def _is_on_cpu(array) -> bool:
  return next(iter(array.devices())).platform == "cpu"


def _split(state: TrainState):
  """(params, the rest with raw random bits)."""
  rng = state.rng if state.rng.dtype == jnp.uint32 else jax.random.key_data(state.rng)
  return state.params, state.replace(params=None, rng=rng)


def _abstract(tree):
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _restore_as(target):
  return ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))


def _shapes(tree, start: str) -> dict[str, str]:
  """Type and shape of every leaf by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {start + jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _item(name: str) -> str:
  return "params" if name.startswith("params") else "rest"


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:300]


def _path(place: str):
  from etils import epath

  return epath.Path(place)


def _exists(place: str) -> bool:
  return _path(place).exists()


def _is_there(folder, step: int) -> bool:
  return _exists(f"{folder}/{step}")


def _everyone(name: str) -> None:
  """Waits for all processes of the run."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
