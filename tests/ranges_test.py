"""The table of allowed values: every accepted value builds a run, and every other one gives one line."""

import random

import jax
import pytest

from configs import base
from experiments import build
from experiments import overrides
from experiments.configured import ranges
from qempo_jax.errors import InputError
from tests.loops import offline_toy
from tests.loops import toy

# Numbers of which every finite one makes sense, or whose own reader says more than a range.
FREE = {
  "reward.max", "reward.unscored", "replay.min_reward", "offline.margin", "offline.chosen_fall", "make_pairs.good", "offline.acceptable",
  "make_pairs.bad", "evaluation.floor", "evaluation.acceptable",
}  # fmt: skip
VALUES = ("-1", "0", "1", "2", "3", "-0.5", "0.5", "1e30", "1e400", "-1e400", "nan", "none", "", "x", "true", "99999999999",
          "1,2", "()", "(-1,0,0)", "((1,),)", "jsonl:", "f(", "a.b", "dpo", "qempo", "bfloat16", "$X")  # fmt: skip


def test_every_number_has_a_row():
  config, numbers = base.get_config(), set()
  for key in overrides.leaf_keys(config):
    group, name = config, key
    while "." in name:
      head, _, name = name.partition(".")
      group = group[head]
    kind = group.get_type(name)
    if kind in (int, float) and not key.startswith("constraints."):
      numbers.add(key)
  assert {key for key, row in ranges.ALLOWED.items() if isinstance(row, ranges.Range)} - {"duals.floors.quantile",
         "duals.floors.margin", "duals.floors.width"} == numbers - FREE  # fmt: skip


def _outcome(config, key, text):
  """Returns None if a run was built, else the error line."""
  try:
    overrides.apply_override(config, key, text)
    overrides.require_complete(config)
    run = build.run(config, toy.policy(), check=False)
    jax.eval_shape(run.first_state, run.policy.params)
  except InputError as error:
    assert "\n" not in str(error) and len(str(error)) < 600, (key, text, str(error))
    return str(error)
  return None


@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["online", "offline"])
def test_overrides_at_random_build_a_run_or_are_one_line(tmp_path, kind, count, monkeypatch):
  monkeypatch.chdir(tmp_path)
  make = toy.config if kind == "online" else lambda folder: offline_toy.config(folder, count=8, scale=4.0)
  draw, keys, refused = random.Random(0), sorted(overrides.leaf_keys(base.get_config())), 0
  for _ in range(count):
    key, text = draw.choice(keys), draw.choice(VALUES)
    refused += _outcome(make(tmp_path), key, text) is not None
  assert 0.2 * count < refused < 0.95 * count


@pytest.mark.parametrize(
  ("key", "text", "words"),
  [
    ("offline.weights", "learned", "config.offline.weights='learned' is not one of fixed, multipliers"),
    ("offline.alpha", "0", "above 0"),
    ("offline.label_smoothing", "0.5", "at least 0 and below 0.5"),
    ("optimizer.learning_rate", "0", "above 0"),
    ("offline.list_size", "1", "at least 2"),
    ("offline.pairs_per_row", "0", "at least 1"),
    ("reward_model.pairs_per_step", "0", "at least 1"),
    ("sampling.stale_steps", "2", "at least 0 and at most 1"),
    ("compute.bucket", "0", "config.compute.bucket=0 must be at least 1"),
    ("sampling.temperature", "0", "above 0"),
    ("optimizer.b2", "1", "at least 0 and below 1"),
    ("duals.averaging", "1.5", "below 1"),
    ("replay.weight", "-1", "at least 0"),
    ("steps", "-1", "at least 0"),
    ("constraints.kl.gain", "-0.1", "config.constraints.kl.gain=-0.1 must be at least 0"),
    ("constraints.kl.bound", "1e400", "must be finite"),
    ("constraints.kl.bound", "-1", "constraints.kl with bound=-1.0: a KL budget, in nats, must be at least 0, not -1"),
    ("constraints.length.bound", "0.5", "a length budget, in tokens with the ending one, must be at least 1, not 0.5"),
    ("constraints.entropy_budget.bound", "-5", "an entropy budget, in nats, must be at least 0, not -5"),
    ("constraints.quality.parametrisation", "lgo", "is not one of linear, log, softplus"),
    ("compute.dtype", "float8", "config.compute.dtype='float8' is not one of float32, bfloat16"),
    ("evaluation.reward_range", "0,1e400", "must be finite"),
    ("reward_model.heldout", "1,2", "config.reward_model.heldout=(1, 2) must hold texts"),
    ("evaluation.splits", "((1,),)", "must hold texts"),
    (
      "evaluation.axes",
      "lexical,musical",
      "config.evaluation.axes='musical' is not one of lexical, semantic, syntactic",
    ),
    ("constraints.entropy.bound", "1000", "out of reach: "),
  ],
)
def test_a_value_out_of_range_is_named(tmp_path, key, text, words):
  assert words in _outcome(toy.config(tmp_path), key, text)


def test_a_floor_of_the_entropy_above_its_budget_is_refused(tmp_path):
  config = toy.config(tmp_path)
  config.constraints.entropy.bound = 5.0
  words = "constraints.entropy.bound=5 is above constraints.entropy_budget.bound=1: no entropy is both"
  assert _outcome(config, "constraints.entropy_budget.bound", "1") == words
