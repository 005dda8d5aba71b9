"""Programs are compiled in a run's first steps and never again while rows round up to the same width."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.run import compilations
from tests.loops import offline_toy
from tests.loops import toy


def test_the_counter_hears_of_a_new_shape_and_not_of_an_old_one():
  double = jax.jit(lambda x: 2 * x)
  ones = [jnp.ones(3), jnp.ones(4)]
  with compilations.Counter() as compiled:
    double(ones[0])
    assert compiled.take() == 1
    double(ones[0])
    assert compiled.take() == 0
    double(ones[1])
    assert compiled.take() == 1
  double(jnp.ones(5))
  assert compiled.take() == 0


def _rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_online_steps_compile_nothing_after_the_first_though_lengths_vary(tmp_path):
  config = toy.config(tmp_path)
  config.steps, config.compute.bucket, config.sampling.group_size, config.data.prompts_per_step = 5, 64, 4, 4
  config.constraints.quality.bound = 0.6
  toy.train(config, tmp_path, toy.policy(), offline_toy.Recorder())
  rows = _rows(tmp_path)
  assert len({row["length"] for row in rows}) > 2
  assert rows[0]["compilations"] > 0
  assert [row["compilations"] for row in rows[2:]] == [0, 0, 0]


@pytest.mark.slow
def test_offline_steps_compile_nothing_after_the_first_measurement(tmp_path):
  config = offline_toy.config(tmp_path, count=64, scale=2.0)
  config.steps, config.offline.measure_every, config.compute.bucket = 6, 2, 128
  toy.train(config, tmp_path, toy.policy(), offline_toy.Recorder())
  rows = _rows(tmp_path)
  assert rows[0]["compilations"] > 0
  assert [row["compilations"] for row in rows[3:]] == [0, 0, 0]


def test_a_folder_that_jax_was_told_of_is_kept(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("QEMPO_CACHE_DIR", str(tmp_path))
    compilations.keep()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
    compilations.keep(tmp_path / "elsewhere")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
