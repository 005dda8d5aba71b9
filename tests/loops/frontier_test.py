"""The sweep: which runs there are, what is kept, and that the toy's figures and curves are exact."""

import pathlib

import jax
import numpy as np
import pytest

from experiments import build
from experiments import cli
from experiments.measure import enumerable
from experiments.measure import frontier_runs as frontier
from qempo_jax.errors import InputError
from tests.loops import toy


@pytest.fixture(name="config")
def _config():
  config = cli.load_config(pathlib.Path(__file__).parents[2] / "configs" / "frontier_toy.py")
  config.enumerable.vocab_size, config.enumerable.max_length, config.enumerable.num_prompts = 3, 2, 2
  config.enumerable.num_good, config.enumerable.width = 2, 8
  config.methods = ("base", "ucpo")
  config.seeds = (0, 1)
  config.points.base = config.points.base[:2]
  config.points.ucpo = config.points.ucpo[:1]
  config.ucpo.steps = 2
  return config


def test_runs_are_made_once_and_the_untrained_with_one_seed(config, tmp_path, monkeypatch):
  monkeypatch.setattr(frontier, "exact_curves", lambda problem: "curves")
  assert [run.name for run in frontier.planned(config)] == [
    "base-0-seed0",
    "base-1-seed0",
    "ucpo-0-seed0",
    "ucpo-0-seed1",
  ]
  frontier.check(config)
  assert frontier.run_enumerable(config, tmp_path, frontier.missing(config, tmp_path)) == "curves"
  assert not frontier.missing(config, tmp_path)
  results = frontier.read(config, tmp_path)
  assert results[2]["figures"]["entropy"] != results[3]["figures"]["entropy"]  # seeds differ
  assert results[0]["figures"]["entropy"] < results[1]["figures"]["entropy"]  # temperatures 0.3 and 0.5
  (tmp_path / "runs" / "ucpo-0-seed1" / "result.json").unlink()
  assert [run.name for run in frontier.missing(config, tmp_path)] == ["ucpo-0-seed1"]


def test_a_checkpoint_is_asked_of_runs_that_keep_some(config, tmp_path):
  frontier.check(config, "last")
  with pytest.raises(InputError, match="ucpo-0-seed0 keeps no checkpoints, so --checkpoint=best names none"):
    frontier.check(config, "best")
  path = tmp_path / "runs" / "ucpo-0-seed0" / "result.json"
  path.parent.mkdir(parents=True)
  path.write_text('{"checkpoint": "best"}')
  with pytest.raises(InputError, match="is of --checkpoint=best, not last: remove that file"):
    frontier.check_made(config, tmp_path, "last")
  frontier.check_made(config, tmp_path, "best")


@pytest.mark.slow
def test_exact_curves_are_in_the_programs_order(config, monkeypatch):
  monkeypatch.setattr(frontier, "CURVE_POINTS", 3)
  curves = frontier.exact_curves(enumerable.make_problem(config.enumerable))
  # At one reward QEMPO has the most entropy there is, RLHF the least of the three.
  for most, middle, least in zip(*(curves[name] for name in ("QEMPO, exact", "QEMPO-KL, exact", "RLHF, exact"))):
    assert most["reward"] == pytest.approx(least["reward"], abs=1e-5)
    assert most["entropy"] >= middle["entropy"] - 1e-6 >= least["entropy"] - 2e-6


def test_figures_are_those_of_a_policy_known_by_hand(config):
  problem = enumerable.make_problem(config.enumerable)
  count = problem.rewards.shape[1]
  uniform = np.full(problem.rewards.shape, -np.log(count))
  found = enumerable.figures(problem, uniform, (1, 2))
  np.testing.assert_allclose(found["entropy"], np.log(count), rtol=1e-6)
  np.testing.assert_allclose(found["effective_answers"], 2, rtol=1e-6)
  np.testing.assert_allclose(found["pass@2"], 1 - (1 - 2 / count) ** 2, rtol=1e-6)
  np.testing.assert_allclose(found["distinct@2"], 2 * (1 - (1 - 1 / count) ** 2), rtol=1e-6)
  same = problem.log_probs(problem.params, 1.0)
  np.testing.assert_allclose(np.exp(same).sum(-1), 1, rtol=1e-5)
  assert np.all(np.isfinite(jax.device_get(problem.log_probs(problem.params, 0.3))))


def test_a_key_that_a_method_lacks_is_named(config):
  config.points.ucpo = ((("offline.tau", 1.0),),)
  with pytest.raises(InputError, match="offline.tau"):
    frontier.check(config)
  config.points.ucpo = ()
  with pytest.raises(InputError, match="ucpo"):
    frontier.check(config)


def test_a_judge_stands_beside_the_runs_own_reward(tmp_path):
  of_toy = toy.config(tmp_path)
  of_toy.evaluation.samples_per_prompt, of_toy.evaluation.prompts_per_batch = 4, 2
  policy, rows = toy.policy(), [{"prompt": prompt, "split": "train"} for prompt in toy.PROMPTS]
  evaluate = lambda *judges: build.evaluator(of_toy, policy, rows, toy.reward, *judges)(
    policy.params, method="m", seed=0
  )
  opposite = lambda prompts, completions, **columns: [-value for value in toy.reward(prompts, completions)]
  judged = evaluate(opposite)
  assert [row["judge"] for row in judged] == pytest.approx([-row["reward"] for row in judged])
  assert [{k: v for k, v in row.items() if k != "judge"} for row in judged] == evaluate()
  texts = [row | {"completion": row["completion"] or "0", "ref_log_prob": row["log_prob"] - 1.5} for row in judged]
  figures = frontier.sampled_figures(texts, embed=lambda texts: np.ones((len(texts), 1)))[1]
  np.testing.assert_allclose(figures["judge"], -figures["reward"], rtol=1e-6)
  np.testing.assert_allclose(figures["kl"], 1.5, rtol=1e-6)


def test_batches_of_an_evaluation_have_random_numbers_of_their_own(tmp_path):
  of_toy = toy.config(tmp_path)
  of_toy.evaluation.samples_per_prompt, of_toy.evaluation.prompts_per_batch = 16, 1
  rows = [{"prompt": toy.PROMPTS[0], "split": split} for split in "ab"]
  found = build.evaluator(of_toy, toy.policy(), rows, toy.reward)(toy.policy().params, method="m", seed=0)
  texts = [[row["completion"] for row in found if row["split"] == split] for split in "ab"]
  assert len(texts[0]) == len(texts[1]) == 16 and texts[0] != texts[1]


@pytest.mark.slow
def test_the_online_loop_takes_the_transformation_that_needs_the_responses(tmp_path):
  of_toy = toy.config(tmp_path)
  of_toy.steps, of_toy.sampling.group_size = 1, 4
  of_toy.method = "setpo(weight=1.0)"
  changed = toy.train(of_toy, tmp_path).params
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(changed))
  with pytest.raises(InputError, match="no method 'other'"):
    of_toy.method = "other"
    toy.train(of_toy, tmp_path)


def test_a_point_that_runs_made_together_would_ignore_is_refused(config):
  config.points.ucpo = ((("optimizer.learning_rate", 1e-3),), (("optimizer.learning_rate", 1e-2),))
  with pytest.raises(InputError, match="ucpo-1-seed0 has optimizer.learning_rate = 0.01 and ucpo-0-seed0 0.001"):
    frontier.check(config)
  config.points.ucpo = ((("method", "ucpo(tau=0.1)"),), (("method", "ucpo(tau=0.2)"),))
  frontier.check(config)
  config.runner = "online"
  config.points.ucpo = ((("compute.dtype", "float32"),), (("compute.dtype", "bfloat16"),))
  with pytest.raises(InputError, match="ucpo-0-seed0 has compute.dtype = 'float32' and base-0-seed0 'bfloat16'"):
    frontier.check(config)
