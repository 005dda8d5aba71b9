"""Metrics to Weights & Biases beside `metrics.jsonl` and TensorBoard, where config.logging.wandb names a project."""

from collections.abc import Mapping
import importlib
from typing import Any

from experiments.run import distributed
from qempo_jax.errors import InputError


def check(project: str) -> None:
  """Raises InputError where a project is named and the package is absent; to be called before anything slow."""
  if project:
    _package()


def also(project: str, log, *, name: str, config: Mapping[str, Any]):
  """`log` itself, or one that writes to it first and to a Weights & Biases project then.

  Args:
    project: of Weights & Biases; "" for none.
    log: of the metrics.
    name: of the run.
    config: of the run, JSON-able.
  """
  if not project or not distributed.is_writer():
    return log
  return WandbLog(log, _package().init(project=project, name=name, config=dict(config)))


class WandbLog:
  """A metrics log that passes every row on; the file on this disk stays the record."""

  def __init__(self, log, run):
    """Passes rows on to a log and to a run of Weights & Biases."""
    self._log, self._run = log, run

  def write(self, metrics) -> None:
    """Appends one step."""
    self._log.write(metrics)
    self._run.log({name: value for name, value in metrics.items() if value is not None}, step=metrics["step"])

  def close(self) -> None:
    """Ends the run."""
    self._log.close()
    self._run.finish()

  def __getattr__(self, name):
    return getattr(self._log, name)


def _package():
  try:
    return importlib.import_module("wandb")
  except ImportError as error:
    raise InputError(
      "config.logging.wandb names a project, but the package wandb is not installed: pip install wandb, or leave it"
      ' empty ("") for metrics.jsonl and TensorBoard alone'
    ) from error
