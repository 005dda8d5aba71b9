"""One policy for responses that no function could judge: online floors, pairs, evaluation, samples of other programs."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import make_pairs
from experiments.batches import pairs
from experiments.measure import sample_files
from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import methods
from qempo_jax.evaluation import alarms
from qempo_jax.evaluation import summary
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import online_step
from qempo_jax.train import state as train_state

NAN = np.nan


def _measured(rewards, **others):
  """Means of a step whose rewards are these, of which NaN could not be judged; each response has one token."""
  rewards = jnp.asarray(rewards)
  unscored = jnp.isnan(rewards)
  by_name = {"reward": rewards} | {name: jnp.asarray(values) for name, values in others.items()}
  batch = online_step.GroupBatch(
    None, jnp.ones((*rewards.shape, 1), bool), by_name, ~unscored, jnp.zeros_like(unscored), unscored=unscored
  )
  stats = TokenStats(jnp.full((*rewards.shape, 1), -2.0), jnp.ones((*rewards.shape, 1)))
  groups = online_step.as_groups(online_step.with_unscored(batch), stats, jnp.full(rewards.shape, -3.0), 1.0)
  floors = {name: constraints.reward_floor(name, 0.5) for name in by_name}
  measured, values = online_step.measure(stats, groups, floors)
  return measured, values


def test_a_floor_is_not_held_on_what_could_be_judged():
  measured, values = _measured([[1.0, NAN, NAN, NAN]])
  assert float(values["reward"]) == float(measured["reward"]) == 0.25
  assert float(measured["kl"]) == 1.0 and float(measured["length"]) == 1.0  # of all four
  assert float(_measured([[2.0, NAN], [-1.0, 4.0]])[1]["reward"]) == pytest.approx((2 - 1 - 1 + 4) / 4)
  assert float(_measured([[1.0, 1.0], [NAN, NAN]])[1]["reward"]) == 0.5  # a group of which nothing could be judged
  assert np.isnan(float(_measured([[NAN, NAN]])[1]["reward"]))  # nothing was measured


def test_a_further_reward_that_does_not_apply_to_a_prompt_has_no_value_there():
  values = _measured([[1.0, 1.0], [1.0, 1.0]], safe=[[1.0, NAN], [NAN, NAN]])[1]
  assert float(values["safe"]) == 0.5


def test_a_further_floor_moves_the_policy_away_from_what_it_could_not_judge():
  """One step on two samples that the main reward holds alike: the multiplier of a floor must be able to reach it."""
  flags, safe = jnp.ones((1, 2), bool), jnp.array([[1.0, NAN]])
  batch = online_step.GroupBatch(
    None, flags[..., None], {"reward": jnp.ones((1, 2)), "safe": safe}, flags, ~flags, unscored=~flags
  )
  bounds = {"safe": constraints.reward_floor("safe", 0.9)}
  optimizers = online_step.Optimizers(optax.sgd(1.0), optax.sgd(0.1))
  dual_params = duals.init_dual_params({"safe": 2.0})
  state = train_state.create(
    jnp.zeros(2), dual_params, jax.random.key(0), optimizer=optimizers.policy, dual_optimizer=optimizers.dual
  )
  moved, metrics = online_step.policy_and_duals(
    state, batch, jnp.zeros((1, 2)), objective=online_step.OnlineObjective(methods.qempo(), bounds, 0.0, 0.9), optimizers=optimizers,
    score=lambda params, rows: TokenStats(params[None, :, None], jnp.zeros((1, 2, 1))),
  )  # fmt: skip
  assert float(moved.params[0]) > 0 > float(moved.params[1]) and float(metrics["dual/safe/value"]) == 0.5


def test_pairs_are_made_of_judged_samples():
  select = lambda texts, rewards: [(int(np.argmax(rewards)), int(np.argmin(rewards)))]
  rows = make_pairs.rows_of({"prompt": "p"}, ["a", "b", "c"], np.array([1.0, NAN, 0.5]), [False] * 3, select)
  assert [row["rejected"][0]["content"] for row in rows] == ["c"]
  scored = make_pairs.rows_of({"prompt": "p"}, ["a", "b"], np.array([NAN, 0.5]), [False] * 2, None)
  assert scored == [{"prompt": "p", "responses": ["b"], "scores": [0.5]}]


def test_sampled_pairs_leave_out_what_was_not_judged(tmp_path, monkeypatch, capsys):
  rewards = np.array([[1.0, NAN, 0.0]])
  monkeypatch.setattr(pairs.sampling, "GroupSampler", lambda policy, settings, rows: _Sampler(rows))
  monkeypatch.setattr(pairs.sampling, "group_rewards", lambda reward, samples: rewards)
  settings, made = types.SimpleNamespace(prompts=1, group_size=3), []
  make = lambda place, row, responses, scores: made.append((responses, scores.tolist())) or []
  sampled = pairs.Sampled(settings, [{"prompt": "p"}], None, seed=0, make=make, read=None)
  with pytest.raises(pairs.InputError, match="all alike"):
    sampled(types.SimpleNamespace(params=None), tmp_path / "pairs.jsonl")
  assert made == [([(1,), (3,)], [1.0, 0.0])] and "1 samples could not be judged" in capsys.readouterr().out


class _Sampler:
  def __init__(self, rows):
    self.rows = rows

  def __call__(self, params, rows, rng, group_size):
    return types.SimpleNamespace(responses=[[(1,), (2,), (3,)]] * len(rows))


def test_samples_of_another_program_keep_every_row(tmp_path):
  lines = [json.dumps({"prompt": "p", "completion": text}) for text in ("right", "hangs", "wrong")]
  (tmp_path / "mine.jsonl").write_text("\n".join(lines))
  judge = lambda prompts, completions, **_: [{"right": 1.0, "wrong": 0.2}.get(text) for text in completions]
  rows, notes = sample_files.read(tmp_path, lambda: judge)
  assert [(round(row["reward"], 6), row["unscored"]) for row in rows] == [(1.0, False), (0.0, True), (0.2, False)]
  assert "mine.jsonl: 1 completions could not be judged, and count as the least reward" in notes
  # One rule for all files, in this call, and never an acceptable answer, even where every reward is.
  (tmp_path / "other.jsonl").write_text(json.dumps({"prompt": "p", "completion": "x", "reward": 0.0, "unscored": True}))
  rows, _ = sample_files.read(tmp_path, lambda: judge, -2.0)
  assert [row["reward"] for row in rows] == pytest.approx([1.0, -2.0, 0.2, -2.0])
  found = summary.summarise(rows, floor=-2.0, reward_range=(-2.0, 1.0), num_draws=10)["methods"]
  of = {name: entry["splits"]["prompts"] for name, entry in found.items()}
  assert (of["other"]["solutions"]["pass@1"]["mean"], of["other"]["effective_answers"]["mean"]) == (0, 0)
  assert of["other"]["diversity"]["acceptable_per_prompt"] == 0


@pytest.mark.parametrize(("share", "said"), [(0.011, True), (0.009, False), (np.nan, False)])
def test_more_than_one_in_a_hundred_raises_an_alarm(share, said):
  mean = {"mean": share, "low": 0.0, "high": 1.0}
  zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
  figures = {"certificates": [{"verdict": "MET", "bound": 0.0, "estimate": 1.0}], "unscored": mean, "kl": zero}
  figures |= {"truncation": zero, "prompts_without_answer": 0.0}
  kinds = [kind for kind, _ in alarms._of_method(figures, None, "base")]
  assert kinds == ["unscored"] * said
