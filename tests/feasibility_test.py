"""The feasibility verb on a transformer whose every response is enumerated: what it foretells, and what it refuses."""

import functools
import json
import operator

import jax
import numpy as np
import pytest

from configs import base
from experiments import build
from experiments import cli
from experiments import feasibility as verb
from experiments import samples
from experiments.configured import policy as build_policy
from experiments.measure import forecast
from qempo_jax import exact
from qempo_jax import methods
from qempo_jax import paths
from qempo_jax.errors import InputError
from tests.loops import toy

RARE = (5, 5, 5, 5)  # one response of 781
FLOOR = 0.45


def rare_reward(prompts, completions, **columns):
  """1 for one response alone."""
  return [float(completion == " ".join(map(str, RARE))) for completion in completions]


@pytest.fixture
def config(tmp_path):
  """The toy with each of its two prompts once."""
  config = toy.config(tmp_path)
  path = tmp_path / "two_prompts.jsonl"
  path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in toy.PROMPTS))
  config.data.source = f"jsonl:{path}"
  config.data.prompts_per_step = 2
  config.constraints.quality.bound = FLOOR
  config.constraints.kl.bound = 0.5
  config.evaluation.samples_per_prompt = 128
  config.feasibility.samples_per_prompt = 1024
  config.reward.max = None
  return config


@pytest.fixture
def run(config, tmp_path, monkeypatch, capsys):
  """Runs the verb as the command line does; returns feasibility.json, with what was printed."""
  monkeypatch.setattr(build_policy, "policy", lambda config: toy.policy())
  config_path = tmp_path / "config.py"
  config_path.write_text("")
  monkeypatch.setattr(cli, "load_config", lambda path: config)
  monkeypatch.setattr(forecast, "NUM_DRAWS", 200)

  def run(*arguments, **changes):
    for key, value in changes.items():
      *groups, name = key.split("__")
      functools.reduce(operator.getitem, groups, config)[name] = value
    workdir = tmp_path / "work"
    cli.run(verb.main, description="", example="", argv=[f"--config={config_path}", f"--workdir={workdir}", *arguments])
    return json.loads((workdir / "feasibility.json").read_text()), capsys.readouterr().out

  return run


def exact_ref():
  """Exact rewards and normalised log-probs of the toy reference."""
  ref = toy.log_probs(toy.policy().params)
  return toy.rewards(), ref - np.log(np.exp(ref).sum(1, keepdims=True))


@pytest.mark.slow
def test_fixed_multipliers_are_foretold_at_their_own_weights(run):
  results, _ = run(constraints__quality=base.get_config().constraints.quality, constraints__kl__bound=None)
  (row,) = results["forecasts"]
  rewards, ref = exact_ref()
  with jax.enable_x64(True):  # lambda = 10, mu = 1
    truth = jax.tree.map(np.asarray, exact.solve_spl(rewards, ref, alpha=0.2, beta=0.1))
  assert row["status"] == "forecast" and results["floors_foretold"] is None
  for name, exactly in (("reward", truth.expected_reward), ("entropy", truth.entropy), ("kl", truth.kl)):
    assert row[name]["low"] - 1e-3 <= float(np.mean(exactly)) <= row[name]["high"] + 1e-3
  assert run(feasibility__samples_per_prompt=128)[0]["samples_per_prompt"] == 128  # in the same workdir


def test_the_forecast_is_the_exact_optimum_within_its_intervals(run):
  rewards, ref = exact_ref()
  budget = 1.6  # a quarter of the way between the least feasible KL and that of QEMPO
  with jax.enable_x64(True):
    truths = {
      "RLHF": exact.solve_rlhf(rewards, ref, min_reward=FLOOR),
      "QEMPO-KL": exact.solve_qempo_kl(rewards, ref, min_reward=FLOOR, max_kl=budget),
    }
    truths = jax.tree.map(np.asarray, truths)
  results, text = run(constraints__kl__bound=budget)
  rows = {row["program"]: row for row in results["forecasts"]}
  assert rows["QEMPO-KL"]["configured"] and "(this config)" in text
  for program, truth in truths.items():
    row = rows[program]
    assert row["status"] == "forecast", row
    for name in ("quality_multiplier", "kl_multiplier", "entropy", "kl"):
      value, found = float(np.mean(getattr(truth, name))), row[name]
      print(program, name, value, found)
      assert found["low"] - 1e-3 <= value <= found["high"] + 1e-3
    sizes = row["effective_sample_size"]
    assert sizes["overall"] == pytest.approx(2 * sizes["harmonic_mean"])
    assert 20 <= sizes["harmonic_mean"] <= 1024
  for name in ("entropy", "kl"):  # the intervals tell the programs apart
    assert rows["RLHF"][name]["high"] < rows["QEMPO-KL"][name]["low"]
  exact_reward = float((np.exp(ref) * rewards).sum(1).mean())
  assert results["reference"]["reward"]["mean"] == pytest.approx(exact_reward, abs=0.03)
  assert results["best_of"][0]["reward"]["mean"] == pytest.approx(results["reference"]["reward"]["mean"])
  assert results["best_of"][-1]["size"] == 1024
  low, high = results["floors_foretold"]
  assert low < FLOOR < high <= results["best_of"][-1]["reward"]["mean"]


def test_rare_good_answers_are_refused_without_a_number(run):
  results, text = run(reward__function="tests.feasibility_test.rare_reward", reward__max=1.0)
  assert {row["status"] for row in results["forecasts"]} == {"refused"}
  assert all("quality_multiplier" not in row and row["reason"] for row in results["forecasts"])
  assert "No forecast of QEMPO-KL" in text


@pytest.mark.slow
def test_a_budget_too_wide_for_the_samples_is_refused_with_how_many_it_takes(run):
  results, text = run(
    feasibility__samples_per_prompt=32,
    evaluation__samples_per_prompt=4,
    constraints__quality__bound=0.6,
    constraints__kl__bound=2.5,
  )
  row = next(row for row in results["forecasts"] if row["configured"])
  size = row["effective_sample_size"]["harmonic_mean"]
  assert size < 20 and row["status"] == "refused"
  assert f"worth {size:.1f} of the optimum" in text and f"draw {int(np.ceil(32 * 20 / size))} a prompt" in text


def short_reward(prompts, completions, **columns):
  """1 for the six responses of at most one token before the ending one."""
  return [float(len(toy.tokens_of(completion)) <= 2) for completion in completions]


def test_qempo_c_is_foretold_by_a_bound_of_its_multiplier(run):
  results, text = run(
    method="qempo_c", reward__function="tests.feasibility_test.short_reward", constraints__kl__bound=None,
    constraints__quality__bound=0.97, constraints__quality__margin=0.02, constraints__quality__start=50.0,
  )  # fmt: skip
  _, ref = exact_ref()
  short = np.tile(np.array([float(len(response) <= 2) for response in toy.responses()]), (2, 1))
  with jax.enable_x64(True):
    truth = float(exact.solve_qempo_coherent(short, ref, min_reward=0.99, threshold=1.0).quality_multiplier)
  found = results["coherence"]
  assert found["status"] == "bound" and max(found["acceptable_seen"]) <= short[0].sum()
  assert truth > 0.5 and truth - 0.05 < found["quality_multiplier_at_most"] < truth + 2
  assert found["recommended_start"] <= min(2, found["quality_multiplier_at_most"])
  assert [row["program"] for row in results["forecasts"]] == ["RLHF", "QEMPO"]
  (line,) = [line for line in text.splitlines() if line.startswith("QEMPO-C (this config)")]
  assert "constraints.quality.start=50 lies above" in line and "at most" in line


def test_qempo_c_without_acceptable_responses_is_refused(run):
  results, text = run(
    method="qempo_c", reward__function="tests.feasibility_test.rare_reward", reward__max=1.0, constraints__kl__bound=None,
    feasibility__samples_per_prompt=16, evaluation__samples_per_prompt=16,
  )  # fmt: skip
  assert results["coherence"]["status"] == "refused" and "quality_multiplier_at_most" not in results["coherence"]
  assert "No forecast of QEMPO-C" in text


@pytest.mark.parametrize("known_max", [None, 1.0])
def test_an_infeasible_floor_is_one_line_with_the_range_and_exit_code_2(run, capsys, known_max):
  with pytest.raises(SystemExit) as caught:
    run(constraints__quality__bound=1.5, reward__max=known_max)
  error = capsys.readouterr().err
  assert caught.value.code == 2 and error.count("\n") == 1
  assert "quality floor 1.5 is out of reach" in error and "have mean" in error and "at most" in error


def test_an_infeasible_budget_is_one_line_with_the_least_kl_and_exit_code_2(run, capsys):
  with pytest.raises(SystemExit) as caught:
    run(constraints__kl__bound=0.001)
  error = capsys.readouterr().err
  assert caught.value.code == 2 and error.count("\n") == 1
  assert "constraints.kl.bound=0.001 is out of reach" in error and "is the least" in error


def test_dry_run_samples_nothing(run, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(samples.GroupSampler, "__call__", None)
  with pytest.raises(FileNotFoundError):
    run("--dry_run")
  assert "1024 samples of each of 2 prompts" in capsys.readouterr().out


def half_entropy():
  return methods.Method(entropy_weight=0.5)


def test_what_cannot_be_foretold_is_said_before_sampling(config):
  config.constraints.quality.bound = None
  with pytest.raises(InputError, match="kl.bound without constraints.quality.bound"):
    forecast.programs(config)
  config.constraints.quality.bound, config.method = FLOOR, f"{__name__}.half_entropy()"
  with pytest.raises(InputError, match="entropy weight of 0.5"):
    forecast.programs(config)
  config.method = "qempo_c"
  with pytest.raises(InputError, match="constraint 'kl' is not foretold"):
    forecast.programs(config)
  config.constraints.kl.bound, config.constraints.coherence.bound = None, 3.0
  with pytest.raises(InputError, match="only with a fixed nu"):
    forecast.programs(config)
  config.constraints.coherence.bound = None
  config.method, config.constraints.kl.bound = "qempo_kl", None
  with pytest.raises(InputError, match="mu fixed at constraints.kl.start=1.0"):
    forecast.programs(config)


def test_a_demo_config_is_turned_away(tmp_path):
  demo = cli.load_config(verb.pathlib.Path(__file__).parent.parent / "configs" / "demo.py")
  with pytest.raises(InputError, match="holds several methods"):
    verb.main(demo, tmp_path, False)


def test_the_measured_groups_are_distinct_and_scored_under_the_reference(config):
  found = build.reference(config, toy.policy()).measure(num_prompts=None, batch=2, group_size=64, rounds=3)
  assert found.rewards.shape == found.log_probs.shape == (2, 192)
  for block in (slice(0, 64), slice(64, 128)):
    assert (found.log_probs[:, block] != found.log_probs[:, 128:]).any(axis=1).all()
  ref = toy.log_probs(toy.policy().params)
  for prompt in range(2):
    nearest = np.abs(found.log_probs[prompt][:, None] - ref[prompt]).min(axis=1)
    assert nearest.max() < 1e-3


def test_reasons_name_the_limit():
  assert forecast.reason_to_refuse(20.0, 0.2, 100) is None
  assert "draw 1000 a prompt" in forecast.reason_to_refuse(2.0, 0.0, 100)
  assert "could take 90% of the optimum" in forecast.reason_to_refuse(50.0, 0.9, 100)


def test_infinite_numbers_are_readable_json():
  text = json.dumps(paths.json_numbers({"a": [float("inf"), float("nan"), 1.0]}), allow_nan=False)
  assert json.loads(text) == {"a": ["inf", None, 1.0]}
