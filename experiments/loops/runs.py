"""What every training loop needs of a run: its first state, its checkpoints, its metrics on disk."""

import json
import pathlib

import jax
import tensorboardX

from experiments import builders
from qempo_jax import sharding
from qempo_jax.checkpoint import Checkpoints


def initial(config, policy: builders.Policy):
  """(optimizers, the state before the first step, placed; its shardings)."""
  optimizers = builders.optimizer_pair(config)
  state = builders.initial_state(config, policy.params, optimizers)
  shardings = sharding.tree_shardings(state, policy.mesh)
  return optimizers, jax.device_put(state, shardings), shardings


def checkpoints(config, workdir: pathlib.Path) -> Checkpoints | None:
  """The run's checkpoints, or None where the config wants none."""
  if config.checkpoint.every < 0:
    return None
  return Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)


def split(mesh, rows: int):
  """Sharding of a batch: rows over the data axes where they divide evenly, else everywhere."""
  if rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
    return sharding.replicated(mesh)
  return sharding.batch_sharding(mesh)


class MetricsLog:
  """`metrics.jsonl`, one JSON object a step, and the same as TensorBoard events beside it."""

  def __init__(self, path: pathlib.Path, *, keep: int):
    """Keeps the first `keep` steps of an earlier run, which a checkpoint vouches for, and drops later ones."""
    self._path = path
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:keep]), encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(str(path.parent / "tensorboard"), write_to_disk=True)

  def write(self, metrics) -> None:
    """Appends one step."""
    with open(self._path, "a", encoding="utf-8") as file:
      file.write(json.dumps(metrics) + "\n")
    for name, value in metrics.items():
      if value is not None:
        self._board.add_scalar(name, value, metrics["step"])

  def close(self) -> None:
    """Writes out the events."""
    self._board.close()
