"""A run's checkpoints: where they are, and the policy in one of them."""

from collections.abc import Mapping
import pathlib
from typing import Any
from typing import NamedTuple

from experiments.plan import Plan
from experiments.run import workdir as workdirs
from qempo_jax.constraints import Constraint
from qempo_jax.errors import InputError
from qempo_jax.models import lora
from qempo_jax.paths import expand_path
from qempo_jax.train.checkpoint import Checkpoints


class Saving(NamedTuple):
  """Settings of saving and of stopping; see `checkpoint` and `faults` in configs/base.py."""

  every: int
  minutes: float
  keep: int
  asynchronous: bool
  folder: str
  max_skipped_in_row: int
  grace_seconds: float

  def place(self, workdir: pathlib.Path):
    """The folder of the checkpoints; it may be a bucket's."""
    if not self.folder:
      return workdir / "checkpoints"
    return self.folder if "://" in self.folder else expand_path(self.folder)

  def check(self, workdir: pathlib.Path) -> None:
    """Raises InputError if the folder of the checkpoints can neither be written nor made; a bucket is not asked."""
    if self.every >= 0 and "://" not in self.folder:
      workdirs.check_writable(self.place(workdir), "the checkpoints' folder", "choose another checkpoint.folder")

  def open(self, workdir: pathlib.Path, *, read_only: bool = False, note=print) -> Checkpoints | None:
    """The run's checkpoints, or None for a run that keeps none."""
    if self.every < 0:
      return None
    options = {"keep": self.keep, "asynchronous": self.asynchronous, "read_only": read_only, "note": note}
    return Checkpoints(self.place(workdir), **options)


def trained_params(
  plan: Plan,
  saving: Saving,
  workdir: pathlib.Path,
  checkpoint: str | int | None = None,
  *,
  merged: bool = True,
  note=print,
) -> tuple[Any, str]:
  """The parameters of one of the workdir's checkpoints, or of the model itself where it has none, and what they are.

  Args:
    plan: the run's computation.
    saving: where the checkpoints are.
    workdir: of the run.
    checkpoint: "best", "last" or a step; None for the best where a constraint has a bound, else the last.
    merged: add adapters to the model's matrices; False: the adapters alone.
    note: told which checkpoint is used, and why.

  Returns:
    (parameters, a description of them).

  Raises:
    InputError: the checkpoint that was asked for is absent or damaged, or none can be read.
  """
  there = saving.folder or saving.place(workdir).is_dir()
  saved = saving.open(workdir, read_only=True, note=note) if there else None
  found = None
  if saved:
    step, why = _choose(plan.constraints, saved, checkpoint)
    found = saved.restore_params(plan.abstract_state().params, step=step)
    saved.close()
  if not found:
    if checkpoint is not None:
      raise InputError(
        f"there is no checkpoint in {workdir}, so --checkpoint={checkpoint} names none: leave it out, or train first"
      )
    if not merged:
      raise InputError(f"there is no checkpoint in {workdir}, and so there are no adapters: train first")
    return plan.policy.params, f"the model {plan.policy.name} (no checkpoint in {workdir})"
  params, step = found
  note(f"Checkpoint: step {step}, {why}; those there are {', '.join(map(str, saved.steps()))}")
  if plan.adapters and merged:
    params = lora.merge(plan.policy.params, params)
  return params, f"the policy after step {step}"


def default_checkpoint(constraints: Mapping[str, Constraint]) -> str:
  """The checkpoint that stands for a run: the best where a constraint has a bound, else the last."""
  return "best" if any(one.bound is not None for one in constraints.values()) else "last"


def _choose(constraints, saved: Checkpoints, checkpoint: str | int | None) -> tuple[int | None, str]:
  """(the step to restore, None for the newest whole one; why that one)."""
  steps, wanted = saved.steps(), checkpoint or default_checkpoint(constraints)
  if not steps or wanted == "last":
    return None, "the last" if checkpoint else "the last (no constraint has a bound)"
  if isinstance(wanted, int):
    return wanted, "as asked"
  best = saved.best_step()
  if best is not None:
    met = saved.quality(best)["shortfall"] <= 0
    return best, "the best: " + (
      "highest entropy within the bounds" if met else "none is within the bounds, it is closest"
    )
  if checkpoint:
    listed = ", ".join(map(str, steps))
    raise InputError(
      f"no checkpoint in {saved.folder} was measured, so none is best: --checkpoint=last, or a step of {listed}"
    )
  return None, "the last (none was measured)"
