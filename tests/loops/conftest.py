"""Runs of one process share their jitted steps: the same config, model and mesh get the same function."""

import json

import pytest

from experiments import build
from experiments.batches import groups
from experiments.batches import pairs
from experiments.configured import constraints as build_constraints

# Groups of the config that no program reads.
_ON_THE_HOST = ("alarms", "checkpoint", "evaluation", "faults", "logging", "reward")
_steps, _configs = {}, {}


def _noted(make):
  def plan(config, policy, **options):
    found = json.loads(config.to_json_best_effort())
    found = {name: value for name, value in found.items() if name not in _ON_THE_HOST}
    found |= {"data": config.data.prompts_per_step, "floors": build_constraints.reward_floors(config)}
    made = make(config, policy, **options)
    _configs[id(made.objective)] = made.objective, json.dumps(found)
    return made

  return plan


def _shared(make):
  def step(plan, shardings):
    if id(plan.objective) not in _configs:
      return make(plan, shardings)
    key = make, _configs[id(plan.objective)][1], plan.policy.config, plan.policy.mesh
    if key not in _steps:
      _steps[key] = make(plan, shardings)
    return _steps[key]

  return step


@pytest.fixture(autouse=True, scope="session")
def shared_steps():
  """Tracing a step takes seconds, and most tests run several times the same one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "plan", _noted(build.plan))
    patch.setattr(groups, "compile_step", _shared(groups.compile_step))
    patch.setattr(pairs, "compile_step", _shared(pairs.compile_step))
    patch.setattr(pairs, "compile_dual_step", _shared(pairs.compile_dual_step))
    yield
