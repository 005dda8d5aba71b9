"""Saving in a loop: due steps, the host state beside the train state, and stops by a notice or by broken updates."""

from collections.abc import Callable
from collections.abc import Mapping
import pathlib
import time
from typing import Any

import jax
import numpy as np

from experiments.run import distributed
from experiments.run import metrics_file
from experiments.run import preemption
from experiments.run import workdir as workdirs
from experiments.run.checkpoints import Saving
from experiments.run.metrics_log import MetricsLog
from qempo_jax import constraints as constraint_lib
from qempo_jax.data import order as orders
from qempo_jax.data import reference_cache
from qempo_jax.errors import InputError

_HOST_KEYS = {"same", "config", "skipped", "loop"}


class Saver:
  """A run's checkpoints; a context manager that waits, at the end, until all is on disk."""

  def __init__(
    self,
    settings: Saving,
    workdir: pathlib.Path,
    note: Callable[[str], None],
    *,
    config: Mapping[str, Any],
    steps: int,
    same: Mapping[str, str],
    tokenizer: Any,
    order: orders.Order | None,
    constraints: Mapping[str, constraint_lib.Constraint],
  ):
    """Opens the checkpoints; nothing is written yet.

    Args:
      settings: of saving.
      workdir: of the run.
      note: told what the user should know.
      config: the run's complete config, JSON-able.
      steps: parameter updates of the run.
      same: hashes by name of what must not change under a run, such as its pairs.
      tokenizer: of the policy.
      order: of the data, whose position is saved.
      constraints: of the run, by which checkpoints are ranked.
    """
    self._settings, self._workdir, self._note, self._order = settings, workdir, note, order
    self._config, self._steps, self._constraints = config, steps, constraints
    self._same = dict(same)
    if hasattr(tokenizer, "get_vocab") and hasattr(tokenizer, "special_tokens_map"):
      self._same["tokenizer's tokens"] = reference_cache.tokenizer_hash(tokenizer)
    self._skipped = {"in_row": 0, "total": 0}
    self._checkpoints = settings.open(workdir, note=note)
    self._notice = preemption.Notice(settings.grace_seconds, self._kept, note)
    self._saved, self._saved_at, self._stop = (
      None,
      time.monotonic(),
      False,
    )  # the step of the last save, and when it was

  def restore(self, state) -> tuple[Any, dict[str, Any]]:
    """(the state of the newest whole checkpoint, what `save` was given as memory); (`state`, {}) where there is none.

    The given state's memory is free for the restored one: what is trained and its optimizer's leaves are deleted first.

    Raises:
      InputError: the checkpoint is of another config, data or tokenizer, or cannot be read.
    """
    if not self._checkpoints or not self._checkpoints.steps():
      self._start()
      return state, {}
    large = state.params, state.opt_state
    params, opt_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), large)
    jax.tree.map(lambda leaf: leaf.delete(), large)
    state, host = self._checkpoints.restore(state.replace(params=params, opt_state=opt_state))
    place = f"the checkpoint in {self._checkpoints.folder}"
    if lacking := sorted(_HOST_KEYS - set(host)):
      raise InputError(f"{place} lacks {', '.join(lacking)}, so no run of this program wrote it; use another workdir")
    for name, value in self._same.items():
      if host["same"].get(name) != value:
        raise InputError(f"the {name} are not those of {place}; restore them, or use another workdir")
    if differing := workdirs.differences(host["config"], self._config):
      raise InputError(f"{place} is of another config ({differing}); use that one, or another folder")
    if self._order:
      self._order.resume(host["order"])
    self._skipped = host["skipped"]
    self._resume(int(state.step))
    return state, host["loop"]

  def _start(self) -> None:
    """Says that the run starts at step 1, or raises InputError where that would lose one that can go on."""
    if self._checkpoints:
      self._checkpoints.check_start()
    else:
      folder = pathlib.Path(self._settings.place(self._workdir))
      if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
        raise InputError(
          f"{folder} holds a run, and checkpoint.every={self._settings.every} reads none: set it to 0, or use another workdir"
        )
    old = len(metrics_file.read(self._workdir / metrics_file.NAME, self._note)) if distributed.is_writer() else 0
    self._note(
      "starting at step 1" + (f": no checkpoint here, {old} old rows of {metrics_file.NAME} replaced" if old else "")
    )

  def _resume(self, step: int) -> None:
    """Says where the run goes on, and which of its rows are gone."""
    known = set(range(1, step + 1))
    if distributed.is_writer():
      known &= {row["step"] for row in metrics_file.read(self._workdir / metrics_file.NAME, self._note)}
    lost = f"; {metrics_file.NAME} lacks {step - len(known)} rows before it" if len(known) < step else ""
    where = f"resuming at step {step + 1}" if step < self._steps else f"all {step} steps were done before"
    self._note(f"{where}: step {step} was restored{lost}")

  def __enter__(self):
    self._notice.__enter__()
    return self

  def __exit__(self, kind, *exception) -> None:
    try:
      if self._checkpoints:
        self._checkpoints.close()
    except InputError:
      if kind is None:  # else what went wrong first is what the user must hear
        raise
    finally:
      self._notice.__exit__()

  def count(self, metrics: dict[str, float]) -> dict[str, float]:
    """Number of updates that the run skipped so far, this one included, as a metric."""
    skipped = bool(metrics["skipped"])
    self._skipped = {
      "in_row": self._skipped["in_row"] + 1 if skipped else 0,
      "total": self._skipped["total"] + skipped,
    }
    return {"skipped_total": self._skipped["total"]}

  def check(self, step: int) -> None:
    """Raises InputError where too many updates in a row were skipped, as `count` was told."""
    most = self._settings.max_skipped_in_row
    if self._skipped["in_row"] > most:
      raise InputError(
        f"step {step}: the loss is not finite, or its gradient, {self._skipped['in_row']} times in a row (faults."
        f"max_skipped_in_row={most}); those updates were skipped: lower optimizer.learning_rate, then start anew"
      )

  def due(self, step: int) -> bool:
    """True where `save` must be called after this step; every process of a run must ask after every step."""
    settings = self._settings
    self._stop = self._notice.came(step)
    alone = jax.process_count() == 1  # clocks of several processes do not agree
    late = alone and settings.every >= 0 and 0 < settings.minutes * 60 <= time.monotonic() - self._saved_at
    return self._stop or late or step == self._steps or (settings.every > 0 and step % settings.every == 0)

  def save(self, state, step: int, log: MetricsLog, memory: Callable[[], dict[str, Any]] = dict) -> None:
    """Saves the state after a step; ends the process after a notice, with 0 or, after Ctrl-C, 130.

    Args:
      state: after the step.
      step: its number.
      log: of the metrics, on disk before the checkpoint that vouches for them.
      memory: makes what the batches must remember, JSON-able.
    """
    if self._checkpoints:
      log.sync()
      host = {"same": self._same, "config": self._config, "skipped": self._skipped, "loop": memory()}
      if self._order:
        host["order"] = self._order.state(step)
      self._checkpoints.save(state, host, quality(self._constraints, state))
      self._saved, self._saved_at = step, time.monotonic()
    if self._stop and step < self._steps:
      self._note(f"told to stop: {self._farewell(step)}")
      raise SystemExit(self._notice.exit_code)

  def _kept(self) -> str:
    if not self._checkpoints or (self._saved is None and not self._checkpoints.steps()):
      return "nothing is saved"
    return f"the checkpoint of step {self._checkpoints.steps()[-1]} stands"

  def _farewell(self, step: int) -> str:
    if not self._checkpoints:
      return f"step {step} is lost, since checkpoint.every={self._settings.every} saves nothing"
    self._checkpoints.wait()
    return f"step {step} is saved, and the same command goes on from there"


def quality(constraints: Mapping[str, constraint_lib.Constraint], state) -> dict[str, float] | None:
  """The rank of a checkpoint: averaged entropy, and the distance of averaged values from the constraints.

  The shortfall is the largest of all constraints', each relative to its bound; the margin that the controller aims inside
  a bound does not count. None if nothing was measured.
  """
  if not float(state.averages.weight):
    return None
  values = {name: float(value) for name, value in state.averages.values().items()}
  relative = lambda name, short: short / max(abs(constraints[name].bound), 1e-6)
  shortfalls = [relative(*item) for item in constraint_lib.shortfall(constraints, values).items()]
  found = {"entropy": values["entropy"], "shortfall": float(np.max([0.0, *shortfalls]))}
  return found if np.isfinite(list(found.values())).all() else None
