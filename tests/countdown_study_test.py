"""The countdown study: figures by hand, the choice, and that RESULTS.md holds the script's tables of the committed runs."""

import json
import pathlib

import numpy as np
import pytest

from experiments import cli
from experiments.configured import data as build_data
from experiments.configured import objective as build_objective
from experiments.measure import frontier_runs as frontier
from experiments.studies import collect
from experiments.studies import countdown_tables

ROOT = pathlib.Path(__file__).parents[1]


def _run(method, rate, seed, answers):
  puzzle = {"samples": 64, "entropy": 2.0, "log_prob": -3.0, "ref_log_prob": -4.0, "num_tokens": 5.0, "truncated": 0.0}
  puzzles = [
    puzzle | {"split": split, "set_name": "countdown 6", "answers": answers} for split in ("validation", "heldout")
  ]
  return {"method": method, "point": [["optimizer.learning_rate", rate]], "seed": seed, "puzzles": puzzles}


def test_figures_by_hand_and_the_more_diverse_point_is_chosen():
  runs = [
    _run("grpo", 2e-5, 0, {"1+5": 32}),
    _run("grpo", 4e-5, 0, {"1+5": 16, "2*3": 16}),
    _run("qempo", 2e-5, 0, {}),
  ]
  of = {(point.method, point.label): point for point in countdown_tables.points(runs, "heldout")}
  one, two, none = of.values()
  assert one.mean("reward") == two.mean("reward") == 0.5 and none.mean("reward") == 0
  assert (one.mean("effective_answers"), two.mean("effective_answers"), none.mean("effective_answers")) == (1, 2, 0)
  assert (one.mean("distinct@64"), two.mean("distinct@64")) == (1, 2)
  assert one.mean("pass@2") == pytest.approx(1 - 32 * 31 / (64 * 63))
  assert two.mean("kl") == 1
  assert countdown_tables.chosen(runs) == {"grpo": two.label, "qempo": none.label}
  assert "2.00 " in next(line for line in countdown_tables.tables(runs) if line.startswith("| GRPO | 1 |"))


def test_a_run_is_collected_as_counts(tmp_path, monkeypatch):
  folder = tmp_path / "runs" / "grpo-0-seed0"
  folder.mkdir(parents=True)
  config = cli.load_config(ROOT / "configs" / "countdown.py")
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  result = {"method": "grpo", "point": [["optimizer.learning_rate", 2e-5]], "seed": 0, "seconds": 1.0}
  (folder / "result.json").write_text(json.dumps(result))
  row = {
    "split": "heldout",
    "set_name": "countdown 6",
    "entropy": 1.0,
    "log_prob": -1.0,
    "ref_log_prob": -2.0,
    "num_tokens": 4,
    "truncated": False,
  }
  rows = [row | {"answer": answer} for answer in ("1+5", None, "1+5", "2*3")]
  (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (run,) = collect.collect([tmp_path])
  assert run["changed"]["data.source"] == "countdown" and "steps" not in run["changed"]
  (puzzle,) = run["puzzles"]
  assert puzzle["answers"] == {"1+5": 2, "2*3": 1} and puzzle["samples"] == 4 and not run["curves"]
  names, figures = frontier.sampled_figures([row | {"prompt": ({"content": "6"},), "reward": 1.0} for row in rows])
  assert (
    names == ["heldout: 6"] and float(figures["pass@1"].squeeze()) == pytest.approx(0.75) and figures["distinct@4"] == 2
  )
  np.testing.assert_allclose(figures["effective_answers"], np.exp(np.log(3) - 2 / 3 * np.log(2)))


def test_every_method_asks_for_as_many_rewards_and_trains_on_as_many_responses():
  config = cli.load_config(ROOT / "configs" / "countdown.py")
  frontier.check(config)
  trained = [config[method] for method in config.methods if config[method].steps]
  budgets = {(c.steps, c.data.prompts_per_step, c.sampling.group_size, c.replay.size) for c in trained}
  assert len(budgets) == 1 and budgets.pop()[-1] == 0
  assert len({len(config.points[method]) for method in config.methods if config[method].steps}) == 1
  assert {row["split"] for row in build_data.evaluation_rows(config.grpo)} == {"validation", "heldout"}


@pytest.mark.parametrize("name", ["offline_pairs", "offline_countdown"])
def test_an_offline_study_is_a_config_that_can_be_run(name):
  config = cli.load_config(ROOT / "configs" / "studies" / f"{name}.py")
  frontier.check(config)
  for method in config.methods:
    if config[method].steps:
      build_objective.offline(config[method])
