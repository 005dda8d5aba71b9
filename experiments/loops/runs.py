"""What every training loop needs of a run: its first state, its checkpoints, its metrics on disk."""

import json
import os
import pathlib

import jax
import tensorboardX

from experiments import builders
from experiments import distributed
from experiments import workdir as workdirs
from qempo_jax import sharding
from qempo_jax.checkpoint import Checkpoints
from qempo_jax.errors import InputError
from qempo_jax.models import lora


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


def trained_params(config, workdir: pathlib.Path, policy: builders.Policy):
  """The parameters of the workdir's newest checkpoint, or of the model itself where it has none, and what they are."""
  if not config.checkpoint.folder and not (workdir / "checkpoints").is_dir():
    return policy.params, f"the model {config.model.source} (no checkpoint in {workdir})"
  saved = checkpoints(config, workdir, read_only=True)
  found = saved and saved.restore_params(trained_shapes(config, policy))
  if not found:
    return policy.params, f"the model {config.model.source} (no checkpoint in {workdir})"
  saved.close()
  params, step = found
  if builders.lora_config(config) is not None:
    params = lora.merge(policy.params, params)
  return params, f"the policy after step {step}"


def split(mesh, rows: int):
  """Sharding of a batch: rows over the data axes where they divide evenly, else everywhere."""
  if rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
    return sharding.replicated(mesh)
  return sharding.batch_sharding(mesh)


class MetricsLog:
  """`metrics.jsonl`, one JSON object a step, and the same as TensorBoard events beside it."""

  def __init__(self, path: pathlib.Path, *, keep: int):
    """Keeps the first `keep` steps of an earlier run, which a checkpoint vouches for, and drops later ones."""
    self._path, self._board = path, None
    if not distributed.is_writer():
      return
    found = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in found if _step(line) in range(1, keep + 1)]
    if kept != found:
      workdirs.write_atomically(path, "".join(kept))
    board = str(path.parent / "tensorboard")
    self._board = tensorboardX.SummaryWriter(board, write_to_disk=True, purge_step=keep + 1 if found else None)

  def write(self, metrics) -> None:
    """Appends one step, on the first process alone."""
    if self._board is None:
      return
    try:
      with open(self._path, "a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")
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


def _step(line: str) -> int:
  """The step of a row; 0 for a line that was cut short."""
  try:
    return json.loads(line)["step"] if line.endswith("\n") else 0
  except (ValueError, KeyError, TypeError):
    return 0
