"""Samples do not depend on where the parameters lie; those are split over tensor alone while they are drawn."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import plan
from experiments import samples
from experiments.configured import objective as build_objective
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.sampling import layout
from tests.loops import toy

MODEL = ModelConfig(48, 32, 64, 1, 4, 2, 8, 100.0, 1e-5, True)


def _policy(mesh, **changes):
  params = parameters.init(jax.random.key(0), MODEL, stddev=0.3)
  params = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  return plan.Policy(dataclasses.replace(MODEL, **changes), params, toy.ToyTokenizer(), (0,), mesh)


def _rollout(tmp_path, mesh, shape):
  config = toy.config(tmp_path)
  config.sampling.max_response_length, config.sampling.mesh = 6, shape
  policy, rows = _policy(mesh), [{"prompt": f"{i + 1} {2 * i + 1}"} for i in range(8)]
  return samples.GroupSampler(policy, build_sampling.sampling(config, policy), rows)(
    policy.params, rows, jax.random.key(1), 8
  ).rollout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
  return _rollout(tmp_path_factory.mktemp("alone"), mesh, ())


@pytest.mark.parametrize(
  "shape", [*(pytest.param(shape, marks=pytest.mark.slow) for shape in ((), (4, 1, 2))), (2, 1, 1, 4)]
)
def test_samples_are_the_same_in_every_layout(tmp_path, alone, shape):
  found = _rollout(tmp_path, sharding.make_mesh((2, 2, 2)), shape)
  assert len(np.unique(alone.tokens)) > 20
  np.testing.assert_array_equal(found.tokens, alone.tokens)
  np.testing.assert_array_equal(found.truncated, alone.truncated)
  np.testing.assert_allclose(found.log_probs, alone.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_parameters_are_split_over_tensor_alone_in_the_compute_dtype(tmp_path, rank):
  config = toy.config(tmp_path)
  config.lora.rank = rank
  policy = _policy(sharding.make_mesh((1, 4, 2)), compute_dtype="bfloat16")
  state = build_objective.first_state(config)(policy.params)
  current = build_policy.as_policy(config)(state.params, policy.params)
  mesh = layout.sampling_mesh(policy.mesh, (4, 1, 2))
  found = layout.arrangement(current, policy.config, mesh)(current)
  gate = found["layers"]["gate"].base if rank else found["layers"]["gate"]
  assert gate.dtype == "bfloat16" and gate.sharding.shard_shape(gate.shape) == (1, 32, 32)
  assert found["embedding"].dtype == "float32" and found["embedding"].sharding.shard_shape((48, 32)) == (24, 32)


def test_another_number_of_devices_is_refused():
  with pytest.raises(InputError, match=r"sampling.mesh=\(4, 1, 1\) does not fit the 8 devices"):
    layout.sampling_mesh(sharding.make_mesh((2, 2, 2)), (4, 1, 1))
