"""The offline loop's own duties: every loss trains, runs resume, and mistakes are said in one line."""

import json

import jax
import numpy as np
import pytest

from configs import base
from experiments import build
from experiments import plan as plans
from experiments.batches import pairs
from experiments.configured import objective as build_objective
from experiments.run import metrics_log
from qempo_jax import duals
from qempo_jax.data import scored
from qempo_jax.errors import InputError
from tests.loops import offline_toy
from tests.loops import toy
from tests.metrics_file import timeless


def _config(folder, **changes):
  config = toy.small(offline_toy.config(folder, count=40, scale=4.0))
  config.steps = 6
  config.offline.loss = "qempo_kl"
  config.offline.measure_every = 2
  config.constraints.quality.bound, config.constraints.kl.bound = 0.6, 0.3
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


def _run(folder, **changes):
  folder.mkdir(exist_ok=True)
  recorder = offline_toy.Recorder()
  return toy.train(_config(folder, **changes), folder, toy.policy(), recorder), recorder


def _metrics(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow  # the online and reward-model runs of the same loop are resumed by default
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
  make, write, events = pairs.Pairs.make, metrics_log.MetricsLog.write, []
  with monkeypatch.context() as patch:
    patch.setattr(pairs.Pairs, "make", lambda self, index: (events.append(f"pack {index}"), make(self, index))[1])
    patch.setattr(
      metrics_log.MetricsLog, "write", lambda self, row: (events.append(f"row {row['step']}"), write(self, row))[1]
    )
    whole, _ = _run(tmp_path / "whole")
  # Each batch is packed while the step before it runs; that step's metrics are read during the step after it.
  assert events[:4] == ["pack 0", "pack 1", "pack 2", "row 1"] and events[-2:] == ["row 5", "row 6"]

  with monkeypatch.context() as patch:
    toy.interrupt(patch, pairs.Pairs, "make", at=5)
    with pytest.raises(KeyboardInterrupt):
      _run(tmp_path / "cut", checkpoint__every=3)
  resumed, recorder = _run(tmp_path / "cut", checkpoint__every=3, logging__profile_steps=1, logging__profile_after=2)
  profiled = f"steps 6 to 6 are profiled in {tmp_path / 'cut' / 'profile'}"
  assert recorder.notes == ["resuming at step 4: step 3 was restored", profiled] and int(resumed.step) == 6
  jax.tree.map(np.testing.assert_array_equal, toy.raw(resumed), toy.raw(whole))
  assert timeless(tmp_path / "cut" / "metrics.jsonl") == timeless(tmp_path / "whole" / "metrics.jsonl")


def test_a_resumed_run_refuses_other_pairs(tmp_path):
  _run(tmp_path / "a", checkpoint__every=3)
  config = _config(tmp_path / "a", checkpoint__every=3)
  offline_toy.write_pairs(tmp_path / "a" / "pairs.jsonl", 40, scale=4.0, seed=1)
  with pytest.raises(InputError, match="pairs are not those of the checkpoint"):
    toy.train(config, tmp_path / "a", toy.policy(), offline_toy.Recorder())


FIXED = dict(
  offline__weights="fixed",
  offline__label_smoothing=0.1,
  optimizer__learning_rate=2e-3,
  offline__pairs_per_step=40,  # the same pairs every step
  checkpoint__every=-1,
)


# One of each kind: a reference, none, three responses, one response; the formulas are in offline_losses_test.
@pytest.mark.parametrize(
  "loss", [pytest.param("dpo", marks=pytest.mark.slow), pytest.param("simpo", marks=pytest.mark.slow), "kto", "nll"]
)
def test_every_kind_of_loss_trains(tmp_path, loss):
  every = 2 if loss == "kto" else 0
  state, _ = _run(tmp_path / "a", offline__loss=loss, offline__measure_every=every, **FIXED)
  found = _metrics(tmp_path / "a")
  assert found[-1]["loss"] < found[0]["loss"] and found[0]["grad_norm"] > 0
  assert found[0]["chosen_change"] == pytest.approx(0, abs=1e-5)  # the policy starts as the reference
  if loss == "nll":  # per token of all responses, not per response
    assert found[0]["loss"] == pytest.approx(-found[0]["chosen_log_prob"] / found[0]["chosen_length"], rel=1e-5)
  assert ("margin" in found[0]) == (loss != "nll")
  assert loss != "dpo" or found[0]["accuracy"] == 0.5  # all margins are 0 but for rounding
  # Fixed weights measure, and leave the multipliers.
  assert ["reward" in row for row in found] == [bool(every), False] * 3
  assert len({row.get("alpha") for row in found}) == 1
  assert not every or (found[0]["reward"] > 0 and found[0]["floor"] == 0.6)
  assert float(duals.multipliers(state.dual_params)["quality"]) == pytest.approx(1.0)


def test_metrics_of_the_first_batch_are_those_of_its_pairs(tmp_path, monkeypatch):
  make, indices = pairs.Pairs.make, []
  record = lambda self, index: (indices.append(self._rows.indices(index)), make(self, index))[1]
  monkeypatch.setattr(pairs.Pairs, "make", record)
  _run(tmp_path / "a")
  first = _metrics(tmp_path / "a")[0]
  log_probs = toy.log_probs(toy.policy().params)
  place = {tuple(response): index for index, response in enumerate(toy.responses())}
  lines = (tmp_path / "a" / "pairs.jsonl").read_text().splitlines()
  rows = [json.loads(lines[index]) for index in indices[0]]
  assert len(rows) == 16
  of = lambda row, name: log_probs[toy.PROMPTS.index(row["prompt"]), place[tuple(row[name])]]
  chosen, rejected = (np.array([of(row, name) for row in rows]) for name in ("chosen", "rejected"))
  assert first["chosen_log_prob"] == pytest.approx(chosen.mean(), rel=1e-5)
  assert first["rejected_log_prob"] == pytest.approx(rejected.mean(), rel=1e-5)
  assert first["chosen_length"] == pytest.approx(np.mean([len(row["chosen"]) for row in rows]))
  margins = (first["alpha"] - first["beta"]) * (chosen - rejected)
  assert first["margin"] == pytest.approx(margins.mean(), rel=1e-4, abs=1e-5)
  assert first["accuracy"] == pytest.approx((margins > 0).mean())


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_pairs_that_share_rows_train_alike_with_less_padding(tmp_path, micro_batches):
  settings = dict(
    steps=1, offline__loss="kto", offline__weights="fixed", offline__measure_every=0, checkpoint__every=-1
  )
  apart, _ = _run(tmp_path / "apart", compute__bucket=8, **settings)
  together, _ = _run(
    tmp_path / "together", compute__bucket=8, compute__micro_batches=micro_batches, offline__pairs_per_row=4, **settings
  )
  for before, after in zip(_metrics(tmp_path / "apart"), _metrics(tmp_path / "together"), strict=True):
    for name in ("loss", "grad_norm", "margin", "chosen_log_prob", "rejected_change"):
      assert after[name] == pytest.approx(before[name], rel=2e-4, abs=1e-5)
    assert after["padding"] < before["padding"]
  near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
  jax.tree.map(near, together.params, apart.params)


def test_multipliers_move_at_measurements_and_weights_follow(tmp_path):
  state, _ = _run(tmp_path / "a")
  found = _metrics(tmp_path / "a")
  assert ["reward" in line for line in found] == [True, False] * 3
  assert found[0]["alpha"] == found[1]["alpha"] != found[2]["alpha"]
  assert found[0]["dual/quality/violation"] > 0 and found[0]["dual/quality/multiplier"] == 1.0
  assert found[2]["dual/quality/multiplier"] > 1.0
  assert found[2]["beta"] == pytest.approx(found[4]["dual/kl/multiplier"] / found[4]["dual/quality/multiplier"])
  assert float(duals.multipliers(state.dual_params)["quality"]) > found[4]["dual/quality/multiplier"]


def test_no_reference_pass_where_nothing_reads_it(tmp_path, monkeypatch):
  monkeypatch.setattr(pairs.Pairs, "_reference", lambda *_: pytest.fail("scored the reference"))
  config = _config(tmp_path, offline__loss="qempo", offline__log_change=False)
  config.constraints.kl.bound = None
  run, plan = build.run(config, toy.policy(), check=False), build.plan(config, toy.policy())
  run.batches.prepare(tmp_path, print)
  state, shardings = plans.initial(plan.first_state, plan.policy.params, plan.policy.mesh)
  metrics = pairs.compile_step(plan, shardings).eval_shape(state, run.batches.make(0)[0], None)[1]
  assert "chosen_log_prob" in metrics and "chosen_change" not in metrics


def test_a_falling_chosen_log_prob_is_pointed_out_once(tmp_path):
  _, recorder = _run(tmp_path / "a", offline__chosen_fall=-1.0)  # a rise of less than 1 nat counts as a fall
  assert len([note for note in recorder.notes if "chosen responses' log-prob fell" in note]) == 1


def test_sampled_pairs_are_kept_and_read_again(tmp_path, monkeypatch):
  changes = dict(offline__pairs="sampled", offline__pairs_per_prompt=2, checkpoint__every=-1)
  folder = tmp_path / "a"
  folder.mkdir()
  config = _config(folder, **changes)
  config.data.source = f"jsonl:{folder / 'prompts.jsonl'}"
  made, resumed = (build.run(config, toy.policy(), check=False).batches._pairs for _ in range(2))
  first = made(toy.policy(), folder / pairs.SAMPLED_FILE)
  rewards = lambda pair: [toy.value(pair.row["prompt"], response) for response in pair[1:]]
  assert len(first) == 16 * 2 and all(good > bad for good, bad in map(rewards, first))
  monkeypatch.setattr(pairs.sampling, "GroupSampler", lambda *_: pytest.fail("sampled again"))
  assert resumed(toy.policy(), folder / pairs.SAMPLED_FILE) == first


def test_equal_rewards_make_no_pairs(tmp_path):
  config = _config(tmp_path, offline__pairs="sampled", reward__function="tests.loops.offline_test.equal_reward")
  config.data.source = f"jsonl:{tmp_path / 'prompts.jsonl'}"
  with pytest.raises(InputError, match="make no pairs"):
    toy.train(config, tmp_path)


def test_answers_need_an_answer_set(tmp_path):
  config = _config(tmp_path, offline__pairs="answers_against_samples")
  with pytest.raises(InputError, match="needs data.source=open_list"):
    build.run(config, toy.policy())


def equal_reward(prompts, completions, **columns):
  """A reward that tells nothing apart."""
  return [0.5] * len(completions)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(offline__loss="dop"), "offline.loss='dop' is not one of spl"),
    (dict(offline__measure_every=0), "needs offline.measure_every"),
    (dict(offline__loss="nll"), "nll has no weight"),
    (dict(offline__loss="qempo"), "has no reference, so constraints.kl.bound"),
    (dict(offline__loss="dpo", offline__weights="fixed", offline__beta=0.0), "dpo needs a positive offline.beta"),
    (
      dict(offline__loss="kto", offline__desirable_weight=0.0, offline__undesirable_weight=0.0),
      "kto nothing to learn from",
    ),
    (dict(offline__loss="ipo", offline__weights="fixed", offline__beta=0.0), "ipo needs a positive"),
    (dict(offline__loss="regression"), "regression has no weight"),
    (
      dict(offline__loss="regression", offline__weights="fixed", constraints__quality__bound=1.0),
      "bound in \\(0, 1\\)",
    ),
  ],
)
def test_a_config_that_cannot_work_is_refused(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    build_objective.offline(_config(tmp_path, **changes))


@pytest.mark.parametrize(("per_row", "micro_batches"), [(3, 1), (8, 4)])
def test_rows_that_pairs_do_not_fill_are_refused(tmp_path, per_row, micro_batches):
  config = _config(tmp_path, offline__pairs_per_row=per_row, compute__micro_batches=micro_batches)
  config.offline.pairs_per_step = 16
  with pytest.raises(InputError, match=f"pairs_per_row={per_row} must divide the {16 // micro_batches} pairs"):
    build.run(config, toy.policy())


def test_dpo_without_a_kl_multiplier_is_refused(tmp_path):
  config = _config(tmp_path, offline__loss="dpo")
  config.constraints.kl.start = 0.0
  with pytest.raises(InputError, match="positive constraints.kl.start"):
    build_objective.offline(config)


def test_the_check_reports_pairs_and_finds_an_impossible_floor(tmp_path):
  config = _config(tmp_path)
  line = build.run(config, toy.policy()).line
  assert "40 pairs of 2 prompts (0 pairs too long); reference policy: reward 0.2" in line
  config.constraints.quality.bound = 1.2
  with pytest.raises(InputError, match="out of reach"):
    build.run(config, toy.policy())
  config = _config(tmp_path, offline__weights="fixed", offline__measure_every=0)
  line = build.run(config, toy.policy()).line
  assert (
    "not measured" in line
    and "no effect of constraints.kl.bound=0.3, constraints.quality.bound=0.6" in line
    and "measure_every" in line
  )


def test_exploding_entropy_and_a_broken_loss_stop_the_run(tmp_path, monkeypatch):
  with pytest.raises(InputError, match="entropy per token"):
    _run(tmp_path / "a", alarms__max_entropy_per_token=0.01)
  reference = pairs.Pairs._reference
  monkeypatch.setattr(pairs.Pairs, "_reference", lambda *args: np.nan * reference(*args))
  with pytest.raises(InputError, match="loss is not finite"):
    _run(tmp_path / "b", faults__max_skipped_in_row=2)


def test_online_is_the_default():
  assert base.get_config().offline.loss is None


def _scored_log(path):
  """Of each prompt eight responses, some of them twice, with their values as scores."""
  responses = [[int(token) for token in ids] for ids in toy.responses()]
  with open(path, "w", encoding="utf-8") as file:
    for number, prompt in enumerate(toy.PROMPTS):
      drawn = [responses[(3 * index + number) % len(responses)] for index in (0, 0, 1, 2, 3, 4, 5, 5)]
      row = {"prompt": prompt, "responses": drawn, "scores": [toy.value(prompt, ids) for ids in drawn]}
      file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("loss", ["listwise", "regression"])
def test_losses_of_lists_train_on_scored_responses(tmp_path, loss):
  changes = FIXED | dict(offline__loss=loss, offline__measure_every=0, offline__pairs_per_step=4)
  (tmp_path / "a").mkdir()
  config = _config(tmp_path / "a", offline__list_size=5, offline__alpha=0.5, offline__beta=0.5, **changes)
  _scored_log(tmp_path / "a" / "log.jsonl")
  config.data.source = f"jsonl:{tmp_path / 'a' / 'log.jsonl'}"
  rows = map(json.loads, open(tmp_path / "a" / "log.jsonl"))
  config.offline.acceptable = min(float(np.median(row["scores"])) for row in rows)
  assert "4 pairs of 2 prompts" in build.run(config, toy.policy()).line  # lists of eight in examples of five
  toy.train(config, tmp_path / "a", toy.policy(), offline_toy.Recorder())
  found = _metrics(tmp_path / "a")
  assert found[-1]["loss"] < found[0]["loss"]
  assert found[0]["chosen_change"] == pytest.approx(0, abs=1e-5) and ("margin" in found[0]) == (loss == "listwise")
  assert found[-1]["chosen_change"] > 0


def test_pairs_serve_losses_of_lists_and_samples_are_kept_as_lists(tmp_path, monkeypatch):
  config = _config(tmp_path, offline__loss="listwise", offline__weights="fixed", offline__list_size=100)
  assert "2 pairs of 2 prompts" in build.run(config, toy.policy(), check=False).line
  config.offline.pairs = "sampled"
  config.data.source = f"jsonl:{tmp_path / 'prompts.jsonl'}"
  made, resumed = (build.run(config, toy.policy(), check=False).batches._pairs for _ in range(2))
  first = made(toy.policy(), tmp_path / pairs.SAMPLED_FILE)
  assert {len(example.responses) for example in first} == {config.sampling.group_size}
  for example in first:
    values = [toy.value(example.row["prompt"], ids) for ids in example.responses]
    np.testing.assert_allclose(example.scores, values)
  monkeypatch.setattr(pairs.sampling, "GroupSampler", lambda *_: pytest.fail("sampled again"))
  assert resumed(toy.policy(), tmp_path / pairs.SAMPLED_FILE) == scored.gather(first)


def test_a_pair_counts_by_its_weight(tmp_path):
  """Weights 1 and 0 train as the pairs of weight 1 alone do, at half the mean."""
  for name, weight in (("all", lambda index: int(index < 20)), ("half", lambda index: 1)):
    folder = tmp_path / name
    folder.mkdir()
    config = _config(folder, steps=1, offline__loss="dpo", offline__measure_every=0, **FIXED)
    rows = list(map(json.loads, (folder / "pairs.jsonl").read_text().splitlines()))[: 40 if name == "all" else 20]
    lines = [json.dumps(row | {"weight": weight(index)}) + "\n" for index, row in enumerate(rows)]
    (folder / "pairs.jsonl").write_text("".join(lines))
    config.offline.pairs_per_step = len(rows)
    toy.train(config, folder, toy.policy(), offline_toy.Recorder())
  (whole,), (half,) = _metrics(tmp_path / "all"), _metrics(tmp_path / "half")
  assert whole["loss"] == pytest.approx(half["loss"] / 2, rel=1e-5)
  assert whole["grad_norm"] == pytest.approx(half["grad_norm"] / 2, rel=1e-4)
