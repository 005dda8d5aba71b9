"""A reference in the hosts' memory gives what one on the devices gives, and takes none of theirs between steps."""

from unittest import mock

import jax
import numpy as np
import pytest

from experiments import build
from experiments import loop
from experiments.configured import policy as build_policy
from qempo_jax import sharding
from qempo_jax.errors import InputError
from tests.loops import killed_runs
from tests.loops import toy


def _policy():
  policy, mesh = toy.policy(), sharding.make_mesh((2, 2, 2))
  params = jax.device_put(policy.params, sharding.tree_shardings(policy.params, mesh, sharding.PARAM_RULES))
  return policy._replace(params=params, mesh=mesh)


def _run(folder, memory, loss, policy):
  folder.mkdir()
  config = killed_runs.config(folder, 6)
  config.checkpoint.every, config.compute.reference_memory, config.offline.loss = -1, memory, loss
  config.data.prompts_per_step = config.offline.pairs_per_step = 4
  if loss:
    config.replay.size, config.offline.pairs, config.offline.measure_every = 0, "sampled", 1
  run = build.run(config, policy, check=False)
  assert (
    jax.tree.leaves(run.policy.params)[0].sharding.memory_kind == {"host": "pinned_host", "device": "device"}[memory]
  )
  state = loop.train(run, folder, toy.Silent())
  assert jax.tree.leaves(state.params)[0].sharding.memory_kind == "device"
  return jax.device_get(state.params), killed_runs.metrics(folder)


slow = pytest.mark.slow


@pytest.mark.parametrize(
  ("loss", "policy"),
  [(None, toy.policy), pytest.param(None, _policy, marks=slow), pytest.param("qempo_kl", _policy, marks=slow)],
)
def test_a_run_does_not_depend_on_where_its_reference_waits(tmp_path, loss, policy):
  expected, found = (_run(tmp_path / memory, memory, loss, policy()) for memory in ("device", "host"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found[0], expected[0])
  for row, other in zip(found[1], expected[1], strict=True):
    assert row == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_a_platform_without_such_memory_says_so(tmp_path):
  config = toy.config(tmp_path)
  config.compute.reference_memory = "host"
  with mock.patch.object(sharding, "HOST", "absent_host"):
    with pytest.raises(InputError, match="reference_memory=host needs absent_host memory, and this cpu has device"):
      build_policy.with_reference_in_its_place(config, toy.policy())


def test_adapters_keep_their_reference(tmp_path):
  config = toy.config(tmp_path)
  config.compute.reference_memory, config.lora.rank = "host", 2
  with pytest.raises(InputError, match="reference_memory=host with lora.rank"):
    build_policy.with_reference_in_its_place(config, toy.policy())
