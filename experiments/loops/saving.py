"""When a loop saves, what is saved beside the state, and what makes a run stop: a notice, or updates that break."""

from collections.abc import Callable
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import builders
from experiments import constrained
from experiments import distributed
from experiments import workdir as workdirs
from experiments.loops import metrics_file
from experiments.loops import preemption
from experiments.loops import runs
from qempo_jax import constraints as constraint_lib
from qempo_jax.data import order as orders
from qempo_jax.data import reference_cache
from qempo_jax.errors import InputError

_HOST_KEYS = {"same", "config", "skipped", "loop"}


class Saver:
  """A run's checkpoints; a context manager that waits, at the end, until all is on disk."""

  def __init__(
    self,
    config,
    workdir: pathlib.Path,
    policy: builders.Policy,
    note: Callable[[str], None],
    *,
    same: dict[str, str],
    order: orders.Order | None = None,
  ):
    """Opens the checkpoints; nothing is written yet.

    Args:
      config: a complete config.
      workdir: of the run.
      policy: the reference, with its tokenizer.
      note: told what the user should know.
      same: hashes by name of what must not change under a run, such as its pairs.
      order: of the data, whose position is saved.
    """
    self._config, self._workdir, self._note, self._order = config, workdir, note, order
    self._config_json = json.loads(config.to_json_best_effort())
    self._same = same
    if hasattr(policy.tokenizer, "get_vocab") and hasattr(policy.tokenizer, "special_tokens_map"):
      self._same = same | {"tokenizer's tokens": reference_cache.tokenizer_hash(policy.tokenizer)}
    self._skipped = {"in_row": 0, "total": 0}
    self._checkpoints = runs.checkpoints(config, workdir, note=note)
    self._notice = preemption.Notice(config.faults.grace_seconds)

  def restore(self, state) -> tuple[Any, dict[str, Any]]:
    """(the state of the newest whole checkpoint, what `after_step` was given); (`state`, {}) where there is none.

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
    if differing := workdirs.differences(host["config"], self._config_json):
      raise InputError(f"{place} is of another config ({differing}); use that one, or another folder")
    if self._order:
      self._order.resume(host["order"])
    self._skipped = host["skipped"]
    self._resume(int(state.step))
    return state, host["loop"]

  def _start(self) -> None:
    """Says that the run starts at step 1, or raises InputError where that would lose one that can go on."""
    c = self._config.checkpoint
    if self._checkpoints:
      self._checkpoints.check_start()
    else:
      folder = pathlib.Path(c.folder or self._workdir / "checkpoints")
      if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
        raise InputError(
          f"{folder} holds a run, and checkpoint.every={c.every} reads none: set it to 0, or use another workdir"
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
    where = f"resuming at step {step + 1}" if step < self._config.steps else f"all {step} steps were done before"
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
    """How many updates of the run were skipped so far, this one included, as a metric."""
    skipped = bool(metrics["skipped"])
    self._skipped = {
      "in_row": self._skipped["in_row"] + 1 if skipped else 0,
      "total": self._skipped["total"] + skipped,
    }
    return {"skipped_total": self._skipped["total"]}

  def after_step(self, state, log: runs.MetricsLog, loop: Callable[[], dict[str, Any]] = dict) -> None:
    """Stops a run whose updates break; saves where one is due; ends the process with 0 after a notice.

    Args:
      state: after the step.
      log: of the metrics, on disk before the checkpoint that vouches for them.
      loop: makes what the loop itself must remember, JSON-able.
    """
    step, c = int(state.step), self._config.checkpoint
    most = self._config.faults.max_skipped_in_row
    if self._skipped["in_row"] > most:
      raise InputError(
        f"step {step}: the loss is not finite, or its gradient, {self._skipped['in_row']} times in a row (faults."
        f"max_skipped_in_row={most}); those updates were skipped: lower optimizer.learning_rate, then start anew"
      )
    stop = self._notice.came(step)
    due = step == self._config.steps or (c.every > 0 and step % c.every == 0)
    if self._checkpoints and (due or stop):
      log.sync()
      host = {"same": self._same, "config": self._config_json, "skipped": self._skipped, "loop": loop()}
      if self._order:
        host["order"] = self._order.state(step)
      self._checkpoints.save(state, host, quality(self._config, state))
    if stop and step < self._config.steps:
      self._note(f"told to stop: {self._farewell(step)}")
      raise SystemExit(0)

  def _farewell(self, step: int) -> str:
    if not self._checkpoints:
      return f"step {step} is lost, since checkpoint.every={self._config.checkpoint.every} saves nothing"
    self._checkpoints.wait()
    return f"step {step} is saved, and the same command goes on from there"


def quality(config, state) -> dict[str, float] | None:
  """What checkpoints are compared by: averaged entropy, and how far averaged values are from the constraints.

  The shortfall is the largest of all constraints', each relative to its bound; the margin that the controller aims inside
  a bound does not count. None where nothing was measured.
  """
  if not float(state.averages.weight):
    return None
  values = {name: float(value) for name, value in state.averages.values().items()}
  constraints = constrained.constraints(config, aim=False)
  relative = lambda name, short: short / max(abs(constraints[name].bound), 1e-6)
  shortfalls = [relative(*item) for item in constraint_lib.shortfall(constraints, values).items()]
  found = {"entropy": values["entropy"], "shortfall": float(np.max([0.0, *shortfalls]))}
  return found if np.isfinite(list(found.values())).all() else None


def fingerprint(rows) -> str:
  """SHA-256 over rows of JSON-able columns."""
  return hashlib.sha256(json.dumps(list(rows), sort_keys=True, default=str).encode()).hexdigest()
