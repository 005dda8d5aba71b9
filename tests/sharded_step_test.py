"""The online step on eight devices, in two parts, gives what it gives on one, multipliers included."""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import numpy as np
import pytest

from experiments import build
from experiments import plan
from experiments import samples as sampling
from experiments.batches import groups
from experiments.configured import policy as build_policy
from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from tests import donation
from tests.loops import toy

MODEL = ModelConfig(48, 32, 64, 2, 4, 2, 8, 100.0, 1e-5, True)
MIXTURE = dataclasses.replace(MODEL, num_experts=4, experts_per_token=2)


def _one_step(tmp_path, mesh, dtype="float32", rank=0, micro_batches=1, model=MODEL, router_weight=0.0):
  config = toy.config(tmp_path)
  config.lora.rank, config.compute.micro_batches = rank, micro_batches
  config.constraints.quality.bound, config.constraints.kl.bound = 0.9, 0.1
  config.sampling.group_size, config.optimizer.router_weight = 4, router_weight
  params = parameters.init(jax.random.key(0), model, stddev=0.3)
  params = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  policy = plan.Policy(dataclasses.replace(model, compute_dtype=dtype), params, toy.ToyTokenizer(), (0,), mesh)
  rng = np.random.default_rng(0)
  responses = [[rng.integers(1, 48, rng.integers(1, 5)) for _ in range(4)] for _ in range(16)]
  prompts = [[int(t) for t in rng.integers(1, 48, 3)] for _ in range(16)]
  rollout = sampling.Rollout(None, None, None, None, np.zeros((16, 4), bool))
  samples = sampling.Samples([{"prompt": str(i)} for i in range(16)], prompts, responses, None, rollout)
  of_run = build.plan(config, policy)
  replay = groups.Replay(
    of_run, min_reward=config.replay.min_reward, key=config.replay.key, capacity=100, rows=samples.rows
  )
  batch = replay.make_batch(samples, {"reward": rng.random((16, 4)).astype(np.float32)}, rng)

  state, shardings = plan.initial(of_run.first_state, params, mesh)
  with donation.checked(state):
    return groups.compile_step(of_run, shardings)(state, params, batch)


@functools.cache
def _on_one_device():
  """(state, metrics) of the unsharded step, made once."""
  single = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  with tempfile.TemporaryDirectory() as folder:
    return jax.device_get(_one_step(pathlib.Path(folder), single))


def test_one_device_moves_policy_and_multipliers():
  state, metrics = _on_one_device()
  assert metrics["skipped"] == 0 and metrics["grad_norm"] > 0 and int(state.step) == 1
  assert float(state.dual_params["quality"]["log_multiplier"]) > np.log(10.0)  # the floor is missed


slow = lambda *shape: pytest.param(shape, marks=pytest.mark.slow)


@pytest.mark.parametrize("shape", [slow(8, 1, 1), slow(1, 8, 1), (2, 2, 2), slow(2, 1, 2, 2), slow(1, 2, 2, 2)])
def test_sharded_equals_single_device(tmp_path, shape):
  expected, expected_metrics = _on_one_device()
  state, metrics = _one_step(tmp_path, sharding.make_mesh(shape))
  if shape[1] > 1:
    assert not state.params["layers"]["gate"].sharding.is_fully_replicated
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
  jax.tree.map(same, jax.device_get(state.dual_params), expected.dual_params)
  jax.tree.map(same, jax.device_get(state.averages), expected.averages)
  moments = lambda state: jax.device_get(state.opt_state[1][0].mu)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), moments(state), moments(expected))


@pytest.mark.slow
def test_sharded_experts_equal_a_single_device(tmp_path):
  single = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  step = lambda mesh, weight: jax.device_get(_one_step(tmp_path, mesh, model=MIXTURE, router_weight=weight))
  (state, metrics), (expected, expected_metrics) = step(sharding.make_mesh((2, 2, 2)), 0.5), step(single, 0.5)
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  moments = lambda state: state.opt_state[1][0].mu
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), moments(state), moments(expected))
  _, unweighted = step(single, 0.0)
  assert metrics["router_loss"] == pytest.approx(unweighted["router_loss"]) and metrics["router_loss"] > 1.5
  assert metrics["loss"] == pytest.approx(unweighted["loss"] + 0.5 * metrics["router_loss"], rel=1e-4)


@pytest.mark.slow
def test_sharded_bfloat16_equals_single_device_to_its_rounding(tmp_path):
  single = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  _, expected = jax.device_get(_one_step(tmp_path, single, "bfloat16"))
  _, metrics = _one_step(tmp_path, sharding.make_mesh((2, 2, 2)), "bfloat16")
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-2, atol=1e-2, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 2, 2, 2)])
def test_sharded_adapters_and_micro_batches_equal_a_single_device(tmp_path, shape):
  single = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  expected, expected_metrics = jax.device_get(_one_step(tmp_path, single, rank=2))
  state, metrics = _one_step(tmp_path, sharding.make_mesh(shape), rank=2, micro_batches=2)
  if shape[1] > 1:
    adapter = state.params["layers"]["gate"]
    assert not adapter.a.sharding.is_fully_replicated and not adapter.b.sharding.is_fully_replicated
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  moments = lambda state: jax.device_get(state.opt_state[1][0].mu)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), moments(state), moments(expected))
  assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(moments(expected))) > 1e-4


def test_unmatched_leaf_is_named():
  with pytest.raises(ValueError, match="strange/leaf"):
    sharding.tree_shardings({"strange": {"leaf": np.zeros(3)}}, sharding.make_mesh())


def test_impossible_mesh_is_refused():
  with pytest.raises(InputError, match="8 devices"):
    sharding.make_mesh((3, 1, 1))


def test_rows_that_the_mesh_cannot_share_are_refused(tmp_path):
  config = toy.config(tmp_path)
  config.compute.micro_batches = 4
  assert build_policy.micro_batches(config, 16, sharding.make_mesh((2, 2, 2))) == 4
  with pytest.raises(InputError, match="leave 4 for data x fsdp = 8 .* a multiple of 32"):
    build_policy.micro_batches(config, 16, sharding.make_mesh((2, 4, 1)))
