"""The offline steps on eight devices, two pairs a row, give what they give on one: policy, multipliers and metrics."""

import jax
import numpy as np
import pytest

from experiments import build
from experiments import plan
from experiments.batches import pairs
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data.pair_tokens import PairTokens
from qempo_jax.data.pair_tokens import pack_pairs
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import offline_step
from qempo_jax.train.online_step import GroupBatch
from tests import donation
from tests.loops import toy

MODEL = ModelConfig(48, 32, 64, 2, 4, 2, 8, 100.0, 1e-5, True)


def _responses(rng, count, group_size):
  return [tuple(tuple(rng.integers(1, 48, rng.integers(1, 5))) for _ in range(group_size)) for _ in range(count)]


def _pair_batch(rng, group_size, per_row):
  prompts = [[int(token) for token in rng.integers(1, 48, 3)] for _ in range(16)]
  found = PairTokens([{}] * 16, prompts, _responses(rng, 16, group_size), 0, 0)
  packed, mask = pack_pairs(found, range(16), bucket=16, max_length=4, per_row=per_row)
  return offline_step.PairBatch(packed, mask, -rng.exponential(8.0, (16, group_size)).astype(np.float32))


def _groups(rng):
  prompts = [[int(token) for token in rng.integers(1, 48, 3)] for _ in range(16)]
  responses = _responses(rng, 16, 4)
  mask = np.arange(4) < np.array([[len(r) for r in group] for group in responses])[:, :, None]
  fresh = np.ones((16, 4), bool)
  groups = GroupBatch(
    packing.pack_groups(prompts, responses, bucket=16),
    mask,
    {"reward": rng.random((16, 4)).astype(np.float32)},
    fresh,
    ~fresh,
  )
  tokens = lambda sign: np.where(mask, sign * rng.exponential(1.0, mask.shape), 0).astype(np.float32)
  return groups, TokenStats(tokens(-1), tokens(1))


def _both_steps(tmp_path, mesh, loss, group_size, per_row=1):
  config = toy.config(tmp_path)
  config.constraints.quality.bound, config.constraints.kl.bound = 0.9, 0.1
  config.offline.loss, config.offline.weights, config.offline.measure_every = loss, "multipliers", 1
  config.offline.pairs_per_step = 16
  params = parameters.init(jax.random.key(0), MODEL, stddev=0.3)
  params = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  policy = plan.Policy(MODEL, params, toy.ToyTokenizer(), (0,), mesh)
  of_run = build.plan(config, policy)
  state, shardings = plan.initial(of_run.first_state, params, mesh)
  rng = np.random.default_rng(0)
  groups, stats = _groups(rng)
  with donation.checked(state):
    between, measured = pairs.compile_dual_step(of_run, shardings)(state, params, groups, stats)
  with donation.checked(between):
    state, metrics = pairs.compile_step(of_run, shardings)(between, _pair_batch(rng, group_size, per_row), None)
  return state, metrics | measured


SHAPES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 2, 1, 2))
SLOW = [pytest.param(shape, "qempo_kl", 2, marks=pytest.mark.slow) for shape in SHAPES]
SLOW += [pytest.param(shape, "kto", 3, marks=pytest.mark.slow) for shape in SHAPES[:2]]


# KTO by default: it alone reads something of the whole batch, and all losses share the dual step.
@pytest.mark.parametrize(("shape", "loss", "group_size"), [((2, 2, 2), "kto", 3), *SLOW])
def test_sharded_equals_single_device(tmp_path, shape, loss, group_size):
  single = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  expected, expected_metrics = jax.device_get(_both_steps(tmp_path, single, loss, group_size))
  state, metrics = _both_steps(tmp_path, sharding.make_mesh(shape), loss, group_size, per_row=2)
  if shape[1] > 1:
    assert not state.params["layers"]["gate"].sharding.is_fully_replicated
  assert "reward" in metrics and "margin" in metrics
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
  jax.tree.map(same, jax.device_get(state.dual_params), expected.dual_params)
  jax.tree.map(same, jax.device_get(state.averages), expected.averages)
  moments = lambda state: jax.device_get(state.opt_state[1][0].mu)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)
  jax.tree.map(near, moments(state), moments(expected))
