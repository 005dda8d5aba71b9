"""Metrics to Weights & Biases beside `metrics.jsonl` and TensorBoard, where config.logging.wandb names a project."""

import importlib
import json

from experiments import constrained
from experiments import distributed
from qempo_jax.errors import InputError


def check(config) -> None:
  """Raises InputError where a project is named and the package is absent; to be called before anything slow."""
  if config.logging.wandb:
    _package()


def also(config, log):
  """`log` itself, or one that writes to it first and to the config's project then."""
  if not config.logging.wandb or not distributed.is_writer():
    return log
  return WandbLog(config, log)


class WandbLog:
  """A metrics log that passes every row on; what is on this disk stays the record."""

  def __init__(self, config, log):
    """Starts a run of the project, named after the method and the seed."""
    self._log = log
    self._run = _package().init(
      project=config.logging.wandb,
      name=f"{constrained.label(config)}-seed{config.seed}",
      config=json.loads(config.to_json_best_effort()),
    )

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
