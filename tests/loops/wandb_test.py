"""Weights & Biases: imported only on request, reported in one line if absent, and fed the rows of metrics.jsonl."""

import sys
import types

import pytest

from experiments.run import wandb_log
from qempo_jax.errors import InputError


class _Log:
  def __init__(self):
    self.rows, self.closed, self.synced = [], False, False

  def write(self, metrics):
    self.rows.append(metrics)

  def sync(self):
    self.synced = True

  def close(self):
    self.closed = True


RUN = {"name": "qempo_kl-seed0", "config": {"steps": 40}}


def test_without_a_project_nothing_is_imported(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  log = _Log()
  wandb_log.check("")
  assert wandb_log.also("", log, **RUN) is log


def test_an_absent_package_is_said_in_a_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match="pip install wandb"):
    wandb_log.check("a_project")


def test_rows_reach_both(monkeypatch):
  calls = []
  run = types.SimpleNamespace(log=lambda row, step: calls.append((row, step)), finish=lambda: calls.append("finished"))
  init = lambda **options: calls.append(options) or run
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  wandb_log.check("a_project")
  inner = _Log()
  log = wandb_log.also("a_project", inner, **RUN)
  log.write({"step": 3, "reward": 0.5, "floor": None})
  log.sync()
  log.close()
  assert inner.rows == [{"step": 3, "reward": 0.5, "floor": None}] and inner.synced and inner.closed
  assert (
    calls[0]["project"] == "a_project" and calls[0]["name"] == "qempo_kl-seed0" and calls[0]["config"]["steps"] == 40
  )
  assert calls[1:] == [({"step": 3, "reward": 0.5}, 3), "finished"]


def test_other_processes_than_the_first_do_not_log(monkeypatch):
  monkeypatch.setattr(wandb_log.distributed, "is_writer", lambda: False)
  log = _Log()
  assert wandb_log.also("a_project", log, **RUN) is log
