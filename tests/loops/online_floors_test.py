"""The online loop with a second reward under a floor of its own: its multiplier moves until the floor holds."""

import json

import numpy as np
import pytest

from experiments.configured import data as build_data
from qempo_jax.errors import InputError
from qempo_jax.testing.sequence_space import sequence_space
from tests.loops import killed_runs
from tests.loops import toy

FLOOR = 0.85


def starts_high(prompts, completions, **columns):
  """1 where the first token is 3 or 4; None for every response that begins with 5."""
  first = [int((text.split() or ["0"])[0]) for text in completions]
  return [None if token == 5 else float(token in (3, 4)) for token in first]


def make(folder):
  config = toy.config(folder)
  config.steps = 100
  config.data.prompts_per_step, config.sampling.group_size, config.compute.bucket = 8, 16, 32
  config.reward.functions = (
    ("value", "tests.loops.toy.reward", 1.0, "none", None),
    ("high", "tests.loops.online_floors_test.starts_high", 0.0, "none", FLOOR),
  )
  config.optimizer.learning_rate = 1e-2
  config.constraints.quality.start = 1.0
  config.constraints.kl.start = 0.0
  config.duals.floors.gain = 0.3
  return config


@pytest.mark.slow
def test_the_floor_of_the_second_reward_is_reached_by_its_own_multiplier(tmp_path, monkeypatch):
  monkeypatch.setattr(toy, "SPACE", sequence_space(6, 2))
  config, policy = make(tmp_path), toy.policy()
  state = toy.train(config, tmp_path, policy)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert rows[0]["dual/high/value"] < 0.4 and rows[0]["unscored"] == 0.0
  assert rows[-1]["dual/high/multiplier"] > 1.2 and rows[-1]["dual/high/bound"] == pytest.approx(FLOOR)
  assert "dual/quality/bound" not in rows[-1]
  probabilities = np.exp(toy.log_probs(state.params))
  first = np.array([response[0] for response in toy.responses()])
  mean = (probabilities * np.isin(first, (3, 4))).sum(1)  # responses that it does not judge count as 0
  assert abs(mean.mean() - FLOOR) < 0.05, mean


def test_a_floor_needs_online_training_without_replay(tmp_path):
  config = make(tmp_path)
  config.replay.size = 4
  with pytest.raises(InputError, match="'high' has a floor"):
    build_data.reward(config)


def test_what_nothing_scored_is_left_out_of_its_group(tmp_path):
  config = killed_runs.config(tmp_path, 6)
  config.reward.functions, config.checkpoint.every = (
    (("high", "tests.loops.online_floors_test.starts_high", 1.0, "none", None),),
    -1,
  )
  toy.train(config, tmp_path)
  row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
  assert 0 < row["unscored"] < 0.5 and np.isfinite(row["loss"]) and 0 < row["reward"] < 1
