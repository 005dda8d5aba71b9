"""The online loop's own duties: resuming, alarms, bad rewards, impossible floors."""

import json
import types

import jax
import numpy as np
import pytest

from experiments import build
from experiments import loop
from experiments import samples as sampling
from experiments.batches import groups
from experiments.configured import data as build_data
from experiments.configured import objective as build_objective
from experiments.measure.heldout import HeldOut
from experiments.run import metrics_file
from qempo_jax.errors import InputError
from tests.loops import killed_runs
from tests.loops import toy
from tests.metrics_file import timeless


def _config(folder):
  return killed_runs.config(folder, 6)


def _run(folder, **changes):
  folder.mkdir(exist_ok=True)
  config = _config(folder)
  for key, value in changes.items():
    group, name = key.split("__")
    config[group][name] = value
  return toy.train(config, folder), config


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
  whole, _ = _run(tmp_path / "whole", checkpoint__every=-1)
  with monkeypatch.context() as patch:
    toy.interrupt(patch, groups.Replay, "make_batch", at=5)
    with pytest.raises(KeyboardInterrupt):
      _run(tmp_path / "cut", checkpoint__every=3)
  resumed, _ = _run(tmp_path / "cut", checkpoint__every=3, logging__profile_steps=1, logging__profile_after=2)
  assert int(resumed.step) == 6 and list((tmp_path / "cut" / "profile").rglob("*.xplane.pb"))
  same = lambda a, b: np.testing.assert_array_equal(a, b)
  jax.tree.map(same, jax.device_get(resumed.params), jax.device_get(whole.params))
  jax.tree.map(same, jax.device_get(resumed.dual_params), jax.device_get(whole.dual_params))
  assert timeless(tmp_path / "cut" / "metrics.jsonl") == timeless(tmp_path / "whole" / "metrics.jsonl")


def test_replayed_responses_are_never_measured(tmp_path, monkeypatch):
  _run(tmp_path / "a", checkpoint__every=-1)
  make_batch, found = groups.Replay.make_batch, []

  def without(self, *args):
    batch = make_batch(self, *args)
    found.append(batch.replayed.any())
    return batch.replace(replayed=np.zeros_like(batch.replayed))

  monkeypatch.setattr(groups.Replay, "make_batch", without)
  _run(tmp_path / "b", checkpoint__every=-1)
  first = found.index(True)  # until here both are the same policy
  row, other = (timeless(tmp_path / name / "metrics.jsonl")[first] for name in "ab")
  assert row["loss"] != other["loss"] and row["grad_norm"] != other["grad_norm"]
  for name in ("reward", "kl", "entropy", "entropy_per_token", "dual/quality/violation", "dual/kl/violation"):
    assert row[name] == pytest.approx(other[name], rel=1e-6), name


def test_held_out_prompts_are_measured_while_training(tmp_path):
  config = _config(tmp_path)
  config.evaluation.every, config.checkpoint.every = 3, -1
  config.evaluation.splits, config.evaluation.max_prompts = (f"jsonl:{tmp_path / 'prompts.jsonl'}",), 2
  config.evaluation.prompts_per_batch, config.evaluation.samples_per_prompt = 2, 4
  state = toy.train(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  names = [f"heldout/prompts.jsonl/{name}" for name in ("reward", "entropy", "distinct")]
  assert [all(name in row for name in names) for row in rows] == [False, False, True] * 2
  found = build.evaluator(config, toy.policy(), build_data.evaluation_rows(config), toy.reward)
  rows_of = found(state.params, method="m", seed=0)
  assert rows[-1][names[0]] == pytest.approx(np.mean([row["reward"] for row in rows_of]))
  texts = [
    {row["completion"] for row in rows_of if row["prompt"] == prompt} for prompt in {r["prompt"] for r in rows_of}
  ]
  assert rows[-1][names[2]] == np.mean(list(map(len, texts)))


def test_a_run_ends_where_the_held_out_reward_no_longer_rises(tmp_path, capsys):
  config = _config(tmp_path)
  config.evaluation.every, config.evaluation.patience, config.optimizer.learning_rate = 1, 2, 1e-12
  config.evaluation.splits, config.evaluation.max_prompts = (f"jsonl:{tmp_path / 'prompts.jsonl'}",), 2
  config.evaluation.prompts_per_batch, config.evaluation.samples_per_prompt = 2, 4
  assert int(toy.train(config, tmp_path).step) == 3 < config.steps  # the reward stays that of step 1
  assert int(toy.train(config, tmp_path).step) == 3  # and is not forgotten
  assert [row["step"] for row in metrics_file.read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
  config.evaluation.every = 0
  with pytest.raises(InputError, match="evaluation.patience counts measurements"):
    toy.train(config, tmp_path / "other")


def test_the_reason_to_end_names_the_best_step():
  rewards = [None, 0.1, 0.5, 0.5, 0.4]
  rows = [{"step": s, "heldout/a/reward": r} if r else {"step": s} for s, r in enumerate(rewards)]
  ends = lambda patience, rows: HeldOut(1, patience, None, None).ending(rows)
  assert ends(0, rows) is None and ends(3, rows) is None and ends(2, rows[:4]) is None and ends(1, []) is None
  assert "above the 0.5 of step 2" in ends(2, rows) and "step 4 is the last" in ends(2, rows)


@pytest.mark.parametrize(("dropped", "loud"), [(1, False), (2, True)])
def test_more_than_a_tenth_of_the_prompts_left_out_is_a_warning(dropped, loud):
  sample = types.SimpleNamespace(rows=[{"prompt": str(i)} for i in range(10 - dropped)], dropped=dropped)
  plan = types.SimpleNamespace(sampling=types.SimpleNamespace(max_prompt_length=9))
  draws = types.SimpleNamespace(sample=sample, order=None)
  (note,) = groups.Groups(plan, draws, None, max_reward=None).notes
  assert note.endswith(f"{dropped} prompts longer than 9 tokens left out") and note.startswith("WARNING") == loud


def test_finds_kept_by_a_column_that_is_not_there_are_refused(tmp_path):
  with pytest.raises(InputError, match="replay.key='set' is no column of .* set it to prompt"):
    _run(tmp_path / "a", replay__key="set")


def test_finds_are_kept_by_the_whole_row(tmp_path):
  config = _config(tmp_path)
  rows = [{"prompt": "Pick a number", "answer": answer, "split": "train"} for answer in ("1", "2")]
  rollout = types.SimpleNamespace(truncated=np.zeros((2, 1), bool), log_probs=np.zeros((2, 1, 2)))
  samples = sampling.Samples(rows, [[5], [5]], [[[7, 9]], [[7, 9]]], [["1"], ["1"]], rollout)
  rewards = {"reward": np.array([[1.0], [0.0]], np.float32)}
  plan = build.plan(config, toy.policy())
  for key, expected in (("", [True, False]), ("answer", [True, False]), ("prompt", [True, True])):
    replay = groups.Replay(plan, min_reward=0.3, key=key, capacity=100, rows=rows)
    replay.make_batch(samples, rewards, np.random.default_rng(0))
    assert replay.make_batch(samples, rewards, np.random.default_rng(0)).replayed.any(axis=1).tolist() == expected


def test_a_multiplier_above_its_cap_is_refused(tmp_path):
  config = _config(tmp_path)
  config.constraints.quality.start, config.duals.cap = 2000.0, 1000.0
  with pytest.raises(InputError, match="constraints.quality.start=2000 is above duals.cap=1000"):
    build_objective.optimizer_pair(config)


def test_columns_are_those_of_all_rows():
  rows = [{"prompt": "p"}, {"prompt": "q", "answer": "3"}]
  samples = sampling.Samples(rows, None, [[[1], [2, 3]], [[4], [5]]], [["a", "b"], ["c", "d"]], None)
  assert sampling._flat(samples)[2] == {"answer": [None, None, "3", "3"], "completion_ids": [[1], [2, 3], [4], [5]]}


def test_exploding_entropy_stops_the_run_with_advice(tmp_path):
  loop._check_entropy({"step": 1, "entropy_per_token": 0.99}, 1.0)
  with pytest.raises(
    InputError, match="step 1: entropy per token is 1.01 nats, above alarms.max_entropy_per_token=1.0"
  ):
    loop._check_entropy({"step": 1, "entropy_per_token": 1.01}, 1.0)
  with pytest.raises(InputError, match="max_entropy_per_token"):
    _run(tmp_path / "a", alarms__max_entropy_per_token=0.01)


def raising_reward(prompts, completions, **columns):
  """A reward function with a mistake in it."""
  return [1 / 0 for _ in completions]


def short_reward(prompts, completions, **columns):
  """A reward function that forgets some completions."""
  return [1.0]


def nan_reward(prompts, completions, **columns):
  """A reward function that returns NaN."""
  return [float("nan")] * len(completions)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("raising_reward", "raised ZeroDivisionError"),
    ("short_reward", "returned 1 scores for 16"),
    ("nan_reward", "returned nan for completion 0"),
    ("no_such_reward", "cannot be imported"),
  ],
)
def test_a_bad_reward_function_is_named(tmp_path, name, message):
  with pytest.raises(InputError, match=message):
    _run(tmp_path / "a", reward__function=f"tests.loops.online_test.{name}")


def test_an_impossible_floor_is_found_before_training(tmp_path):
  config = _config(tmp_path)
  config.constraints.quality.bound = 1.2
  with pytest.raises(InputError, match="out of reach.*have mean"):
    build.run(config, toy.policy())
  config.constraints.quality.bound = 0.9
  assert "aimed at is 0.9" in build.run(config, toy.policy()).line


def test_a_reward_above_the_largest_possible_is_named(tmp_path):
  config = _config(tmp_path)
  config.constraints.quality.bound, config.reward.max = 0.05, 0.1
  with pytest.raises(InputError, match=r"a sample has reward .* given as 0.1 .*reward.max is the largest"):
    build.run(config, toy.policy())


def test_an_unknown_choice_is_named(tmp_path):
  config = _config(tmp_path)
  config.method = "banana"
  with pytest.raises(InputError, match="no method 'banana'"):
    build_objective.online(config)


@pytest.mark.parametrize(
  ("multiplier", "reward", "method", "warned"),
  [(10.0, 0.5, "qempo", True), (10.0, 0.9, "qempo", False), (10.0, 0.5, "grpo(beta=0.1)", False)],
)
def test_a_multiplier_that_drowns_entropy_is_pointed_out(tmp_path, multiplier, reward, method, warned):
  config = _config(tmp_path)
  config.method, config.steps = method, 20
  batches = build.run(config, toy.policy(), check=False).batches
  lines = list(batches.remarks({"step": 5, "dual/quality/multiplier": multiplier, "reward": reward}))
  assert ["5.0 nats" in line for line in lines] == [True] * warned


def test_a_collapse_among_acceptable_responses_is_said_once_until_it_recovers():
  watch = groups.Collapse()
  said = lambda values: [list(watch({"step": 7, "acceptable/effective": value})) for value in values]
  assert not any(said([8.0] * 3 + [1.0] * 10))  # the average is above 2 still
  lines = [line for found in said([1.0] * 20) for line in found]
  assert len(lines) == 1 and "of 8.0" in lines[0] and "collapse" in lines[0]
  assert not any(said([8.0] * 5)) and sum(map(len, said([1.0] * 40))) == 1
  assert not list(watch({"step": 8})) and not any(said([3.0]))
  few = groups.Collapse()
  assert not any(list(few({"step": 1, "acceptable/effective": value})) for value in [2.5] + [1.4] * 50)


def test_only_runs_with_a_coherence_constraint_watch_acceptable_responses(tmp_path):
  lines = {}
  for method in ("qempo_c", "qempo"):
    config = _config(tmp_path)
    config.method, config.steps, config.checkpoint.every = method, 1, -1
    config.constraints.quality.bound, config.constraints.kl.bound = 0.5, None
    (tmp_path / method).mkdir()
    toy.train(config, tmp_path / method)
    lines[method] = json.loads((tmp_path / method / "metrics.jsonl").read_text().splitlines()[0])
  assert lines["qempo_c"]["acceptable/effective"] > 1 and "acceptable/effective" not in lines["qempo"]


def test_a_response_without_a_score_is_neither_fresh_nor_replayed(tmp_path):
  config = _config(tmp_path)
  rollout = sampling.Rollout(None, None, None, None, np.zeros((1, 3), bool))
  samples = sampling.Samples([{"prompt": "p"}], [[1, 2]], [[np.array([3, 0])] * 3], None, rollout)
  rewards = {"reward": np.array([[1.0, np.nan, 0.5]], np.float32)}
  replay = groups.Replay(build.plan(config, toy.policy()), min_reward=0.3, key="", capacity=100, rows=[])
  batch = replay.make_batch(samples, rewards, np.random.default_rng(0))
  assert batch.fresh[0, :3].tolist() == [True, False, True] and not batch.replayed[0, :3].any()
