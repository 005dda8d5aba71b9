"""When a loop saves, what is saved beside the state, and what makes a run stop: a notice, or updates that break."""

from collections.abc import Callable
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import builders
from experiments import workdir as workdirs
from experiments.loops import preemption
from experiments.loops import runs
from qempo_jax.data import order as orders
from qempo_jax.data import reference_cache
from qempo_jax.errors import InputError


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
      return state, {}
    large = state.params, state.opt_state
    params, opt_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), large)
    jax.tree.map(lambda leaf: leaf.delete(), large)
    state, host = self._checkpoints.restore(state.replace(params=params, opt_state=opt_state))
    place = f"the checkpoint in {self._checkpoints.folder}"
    for name, value in self._same.items():
      if host["same"].get(name) != value:
        raise InputError(f"the {name} are not those of {place}; restore them, or use another workdir")
    if differing := workdirs.differences(host["config"], self._config_json):
      raise InputError(f"{place} is of another config ({differing}); use that one, or another folder")
    if self._order:
      self._order.resume(host["order"])
    self._skipped = host["skipped"]
    self._note(f"resumed after step {int(state.step)}")
    return state, host["loop"]

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

  The shortfall is the largest of the floors' and the budget's, each relative to its bound; the margin that the
  controller aims above the floor does not count. None where nothing was measured.
  """
  if not float(state.averages.weight):
    return None
  values = {name: float(value) for name, value in state.averages.values().items()}
  o, shortfalls = config.objective, [0.0]
  if o.min_reward is not None:
    shortfalls.append((o.min_reward - values["reward"]) / max(abs(o.min_reward), 1e-6))
  for name, floor in builders.reward_floors(config):
    shortfalls.append((floor - values[f"reward/{name}"]) / max(abs(floor), 1e-6))
  if o.max_kl is not None:
    shortfalls.append((values["kl"] - o.max_kl) / max(abs(o.max_kl), 1e-6))
  found = {"entropy": values["entropy"], "shortfall": float(np.max(shortfalls))}
  return found if np.isfinite(list(found.values())).all() else None


def fingerprint(rows) -> str:
  """SHA-256 over rows of JSON-able columns."""
  return hashlib.sha256(json.dumps(list(rows), sort_keys=True, default=str).encode()).hexdigest()
