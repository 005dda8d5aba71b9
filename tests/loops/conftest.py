"""Runs of one process share their jitted steps: the same config, model and mesh get the same function."""

import json

import pytest

from experiments import constrained
from experiments.loops import offline
from experiments.loops import online

# Groups of the config that no program reads.
_ON_THE_HOST = ("alarms", "checkpoint", "evaluation", "faults", "logging", "reward")
_steps = {}


def _shared(make):
  def step(config, policy, *rest):
    found = json.loads(config.to_json_best_effort())
    found = {name: value for name, value in found.items() if name not in _ON_THE_HOST}
    found["data"] = config.data.prompts_per_step
    found["floors"] = constrained.reward_floors(config)
    key = make, json.dumps(found), policy.config, policy.mesh
    if key not in _steps:
      _steps[key] = make(config, policy, *rest)
    return _steps[key]

  return step


@pytest.fixture(autouse=True, scope="session")
def shared_steps():
  """Tracing a step takes seconds, and most tests run several times the same one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(online, "compile_step", _shared(online.compile_step))
    patch.setattr(offline, "compile_step", _shared(offline.compile_step))
    patch.setattr(offline, "compile_dual_step", _shared(offline.compile_dual_step))
    yield
