"""What every training loop needs of a run: its first state, its checkpoints, its metrics on disk."""

import os
import pathlib

import jax
import tensorboardX

from experiments import builders
from experiments import constrained
from experiments import distributed
from experiments import workdir as workdirs
from experiments.loops import metrics_file
from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import lora
from qempo_jax.train.checkpoint import Checkpoints


def initial(config, policy: builders.Policy):
  """(optimizers, the state before the first step, placed; its shardings)."""
  optimizers = builders.optimizer_pair(config)
  create = lambda params: builders.initial_state(config, params, optimizers)
  shardings = sharding.tree_shardings(jax.eval_shape(create, policy.params), policy.mesh)
  return optimizers, jax.jit(create, out_shardings=shardings)(sharding.fetched(policy.params)), shardings


def reading_reference(step, reference):
  """step(state, reference's parameters, ...), these brought from the hosts' memory, where `reference` places them there."""
  return lambda state, params, *rest: step(state, sharding.fetched(params, reference), *rest)


def trained_shapes(config, policy: builders.Policy):
  """Shapes and shardings of what is trained; no memory is taken, an optimizer's least of all."""
  optimizers = builders.optimizer_pair(config)
  shapes = jax.eval_shape(lambda params: builders.initial_state(config, params, optimizers).params, policy.params)
  place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  return jax.tree.map(place, shapes, sharding.tree_shardings(shapes, policy.mesh, sharding.PARAM_RULES))


def checkpoints(config, workdir: pathlib.Path, *, read_only: bool = False, note=print) -> Checkpoints | None:
  """The run's checkpoints, or None where the config wants none."""
  c = config.checkpoint
  if c.every < 0:
    return None
  folder = c.folder or workdir / "checkpoints"
  return Checkpoints(folder, keep=c.keep, asynchronous=c.asynchronous, read_only=read_only, note=note)


def trained_params(
  config, workdir: pathlib.Path, policy: builders.Policy, checkpoint: str | int | None = None, note=print
):
  """The parameters of one of the workdir's checkpoints, or of the model itself where it has none, and what they are.

  Args:
    config: of the run.
    workdir: of the run.
    policy: the reference.
    checkpoint: "best", "last" or a step; None for the best where the config bounds a constraint, else the last.
    note: told which checkpoint is used, and why.

  Returns:
    (parameters, a description of them).

  Raises:
    InputError: the checkpoint that was asked for is absent or damaged, or none can be read.
  """
  there = config.checkpoint.folder or (workdir / "checkpoints").is_dir()
  saved = checkpoints(config, workdir, read_only=True, note=note) if there else None
  found = None
  if saved:
    step, why = _choose(config, saved, checkpoint)
    found = saved.restore_params(trained_shapes(config, policy), step=step)
    saved.close()
  if not found:
    if checkpoint is not None:
      raise InputError(
        f"there is no checkpoint in {workdir}, so --checkpoint={checkpoint} names none: leave it out, or train first"
      )
    return policy.params, f"the model {config.model.source} (no checkpoint in {workdir})"
  params, step = found
  note(f"Checkpoint: step {step}, {why}; those there are {', '.join(map(str, saved.steps()))}")
  if builders.lora_config(config) is not None:
    params = lora.merge(policy.params, params)
  return params, f"the policy after step {step}"


def default_checkpoint(config) -> str:
  """The checkpoint that stands for a run: the best where a constraint has a bound, else the last."""
  bounded = any(one.bound is not None for one in constrained.constraints(config, aim=False).values())
  return "best" if bounded else "last"


def _choose(config, saved: Checkpoints, checkpoint: str | int | None) -> tuple[int | None, str]:
  """(the step to restore, None for the newest whole one; why that one)."""
  steps, wanted = saved.steps(), checkpoint or default_checkpoint(config)
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


def split(mesh, rows: int):
  """Sharding of a batch: rows over the data axes where they divide evenly, else everywhere."""
  if rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
    return sharding.replicated(mesh)
  return sharding.batch_sharding(mesh)


class MetricsLog:
  """`metrics.jsonl`, one JSON object a step, and the same as TensorBoard events beside it."""

  def __init__(self, path: pathlib.Path, *, keep: int):
    """Keeps the first `keep` steps of an earlier run, and drops later ones; to be called once their state is restored."""
    self._path, self._board = path, None
    if not distributed.is_writer():
      return
    found = metrics_file.read(path, note=lambda line: None)  # `Saver.restore` says what is damaged
    kept = "".join(metrics_file.line(row) for row in found if row["step"] <= keep)
    if path.exists() and path.read_bytes() != kept.encode():
      workdirs.write_atomically(path, kept)
    board = str(path.parent / "tensorboard")
    self._board = tensorboardX.SummaryWriter(board, write_to_disk=True, purge_step=keep + 1 if found else None)

  def write(self, metrics) -> None:
    """Appends one step, on the first process alone."""
    if self._board is None:
      return
    try:
      with open(self._path, "a", encoding="utf-8") as file:
        file.write(metrics_file.line(metrics))
    except OSError as error:
      raise InputError(
        f"{self._path} cannot be written ({error.strerror}); the last checkpoint stands: free space there, then start"
        " the same command again"
      ) from error
    for name, value in metrics.items():
      if value is not None:
        self._board.add_scalar(name, value, metrics["step"])

  def sync(self) -> None:
    """Returns once all rows are on the disk itself."""
    if self._board is not None and self._path.exists():
      with open(self._path, "rb") as file:
        os.fsync(file.fileno())

  def close(self) -> None:
    """Writes out the events."""
    if self._board is not None:
      self._board.close()
