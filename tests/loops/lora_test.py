"""Both loops with adapters: the loss falls, the base stays, and a resumed run is the uninterrupted one."""

import jax
import numpy as np
import pytest

from experiments.batches import pairs
from experiments.configured import policy as build_policy
from experiments.run import metrics_file
from qempo_jax.errors import InputError
from qempo_jax.models import lora
from tests.loops import offline_toy
from tests.loops import toy


def _offline_config(folder, **changes):
  folder.mkdir(exist_ok=True)
  config = toy.small(offline_toy.config(folder, count=40, scale=4.0))
  config.steps, config.lora.rank, config.lora.alpha = 6, 2, 4.0
  config.offline.loss, config.offline.weights, config.offline.measure_every = "qempo_kl", "fixed", 0
  config.offline.pairs_per_step = 40  # the same pairs every step
  config.constraints.quality.bound, config.constraints.kl.bound = 0.6, 0.3
  config.optimizer.learning_rate = 5e-3
  for key, value in changes.items():
    group, name = key.split("__")
    config[group][name] = value
  return config


def test_offline_trains_adapters_alone_and_resumes_bit_by_bit(tmp_path, monkeypatch):
  policy = toy.policy()
  before = jax.device_get(policy.params)
  config = _offline_config(tmp_path / "whole", checkpoint__every=-1)
  whole = toy.train(config, tmp_path / "whole", policy)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(policy.params), before)
  found = metrics_file.read(tmp_path / "whole" / "metrics.jsonl")
  assert found[-1]["loss"] < found[0]["loss"]
  assert found[0]["chosen_change"] == pytest.approx(0, abs=1e-5)  # fresh adapters: the policy is the reference
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (whole.params, policy.params)]
  assert sizes[0] < sizes[1] / 3
  assert sum(leaf.size for leaf in jax.tree.leaves(whole.opt_state)) < 2 * sizes[0] + 10

  config = _offline_config(tmp_path / "cut", checkpoint__every=3)
  with monkeypatch.context() as patch:
    toy.interrupt(patch, pairs.Pairs, "make", at=5)
    with pytest.raises(KeyboardInterrupt):
      toy.train(config, tmp_path / "cut", policy)
  resumed = toy.train(config, tmp_path / "cut", policy)
  jax.tree.map(np.testing.assert_array_equal, toy.raw(resumed), toy.raw(whole))

  # The whole policy is base and adapters: merged, it scores the responses as the run's own does.
  applied = build_policy.as_policy(config)(whole.params, policy.params)
  merged = toy.log_probs(lora.merge(policy.params, whole.params))
  np.testing.assert_allclose(toy.log_probs(applied), merged, atol=1e-4)
  assert np.abs(merged - toy.log_probs(policy.params)).max() > 0.05


@pytest.mark.slow
def test_online_trains_adapters(tmp_path):
  config = toy.config(tmp_path)
  config.steps, config.lora.rank, config.checkpoint.every = 8, 2, -1
  config.compute.micro_batches, config.optimizer.moments_dtype = 2, "bfloat16"
  config.constraints.quality.bound, config.constraints.kl.bound = 0.9, 5.0
  config.constraints.quality.start, config.optimizer.learning_rate = 30.0, 1e-2
  policy = toy.policy()
  before = jax.device_get(policy.params)
  state = toy.train(config, tmp_path, policy)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(policy.params), before)
  found = metrics_file.read(tmp_path / "metrics.jsonl")
  assert found[0]["kl"] == pytest.approx(0, abs=1e-5) and found[-1]["kl"] > 0.01
  assert found[-1]["reward"] > found[0]["reward"] + 0.02
  moments = [leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert moments and set(moments) == {jax.numpy.dtype("bfloat16")}
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jax.numpy.dtype("float32")}


def test_micro_batches_must_divide_the_batch(tmp_path):
  config = toy.config(tmp_path)
  config.compute.micro_batches = 3
  with pytest.raises(InputError, match="micro_batches=3 does not divide the 16 rows"):
    build_policy.micro_batches(config, 16)


def test_half_precision_parameters_are_warned_of(tmp_path):
  config, params = toy.config(tmp_path), toy.policy().params
  assert build_policy.precision_note(config, params) is None
  config.model.dtype = "bfloat16"
  assert "away on about 100%" in build_policy.precision_note(config, params)
  config.optimizer.learning_rate = 1.0
  assert "away on about 0%" in build_policy.precision_note(config, params)
  config.lora.rank = 2
  assert build_policy.precision_note(config, params) is None
