"""Frontiers: points over seeds, dominated ones, hypervolume, matched comparisons, and the page made of them."""

import json

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import frontier
from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import pages
from qempo_jax.methods.resolve import table

CONFIG = {
  "quality": "reward", "diversity": ["entropy", "effective_answers"], "reference_point": [0.0, 0.0], "baseline": "grpo",
  "levels": [0.5, 0.8], "tolerance": 0.05, "num_draws": 50, "methods": ["grpo", "qempo"], "seeds": [0, 1],
}  # fmt: skip


def make_runs():
  """GRPO and QEMPO at equal quality, QEMPO 2 nats more diverse on each of 12 prompts."""
  runs = []
  for method, extra in (("grpo", 0.0), ("qempo", 2.0)):
    for reward in (0.5, 0.8):
      for seed in (0, 1):
        noise = np.random.default_rng([seed, int(reward * 10)]).normal(scale=0.01, size=(12, 1))
        names = {
          "reward": reward,
          "entropy": 1 + extra,
          "effective_answers": 2 + extra,
          "kl": 1,
          "length": 3,
          "truncation": 0,
        }
        figures = {name: (value + noise).tolist() for name, value in names.items()}
        point = [["objective.min_reward", reward]]
        runs.append(
          {"method": method, "point": point, "seed": seed, "prompts": [f"<{i}>" for i in range(12)], "figures": figures}
        )
  return runs


def test_dominated_points_are_those_that_another_beats():
  values = [(1, 3), (2, 2), (3, 1), (1, 2), (2, 2)]
  assert frontier.dominated(values).tolist() == [False, False, False, True, False]


def test_hypervolume_of_a_staircase_by_hand():
  # Rectangles 1x3, 2x2 and 3x1 from the origin overlap in a staircase of area 3 + 2 + 1.
  values = [(1, 3), (2, 2), (3, 1), (1, 1), (-5, 9)]
  assert frontier.hypervolume(values, (0, 0)) == pytest.approx(6)
  assert frontier.hypervolume(values, (1, 1)) == pytest.approx(1)
  assert frontier.hypervolume([(1, 1)], (2, 2)) == 0


def test_seeds_are_joined_and_other_prompts_refused():
  runs = make_runs()
  found = frontier.points(runs)
  assert [(p.method, p.label, p.seeds) for p in found][0] == ("grpo", "objective.min_reward 0.5", (0, 1))
  assert found[0].figures["reward"].shape == (12, 2)
  with pytest.raises(InputError, match="other prompts"):
    frontier.points([*runs, runs[0] | {"prompts": ["x"]}])
  with pytest.raises(InputError, match="no runs"):
    frontier.points([])


def test_matched_comparisons_pair_prompts_at_each_level():
  rows = frontier_page.matches(frontier.points(make_runs()), CONFIG)
  assert [row.level for row in rows] == [0.5, 0.8]
  for row in rows:
    assert row.diversity.different and row.diversity.difference.mean == pytest.approx(2.0)
    assert abs(row.quality.mean) < 1e-9
  far = frontier.points([run for run in make_runs() if run["method"] == "grpo" or run["point"][0][1] == 0.5])
  assert frontier_page.matches(far, CONFIG)[1].diversity is None


def test_hypervolume_interval_holds_its_estimate():
  of = [p for p in frontier.points(make_runs()) if p.method == "qempo"]
  found = frontier.hypervolume_interval(of, ("reward", "entropy"), (0, 0), num_draws=200)
  assert found.low <= found.mean <= found.high and found.mean == pytest.approx(0.8 * 3, abs=0.05)
  assert isinstance(found, intervals.Interval)


def test_files_are_written_and_text_is_escaped(tmp_path):
  curves = {"QEMPO, exact": [{"reward": r, "entropy": 4 - r, "effective_answers": 3.0} for r in (0.4, 0.9)]}
  results = {"runs": make_runs(), "curves": curves, "config": CONFIG, "command": "<b>", "made_now": {}}
  page = frontier_page.write(tmp_path, results)
  assert {path.name for path in tmp_path.iterdir()} == {"index.html", "frontier.png", "frontier.json", "frontier.tex"}
  text = page.read_text()
  assert "&lt;b&gt;" in text and "<b>" not in text and "<script" not in text
  assert "higher at 2 and lower at 0 of 2 matched levels" in text
  assert json.loads((tmp_path / "frontier.json").read_text())["runs"] == results["runs"]
  table = (tmp_path / "frontier.tex").read_text()
  assert table.count(r"\\") == 1 + 4 and r"min\_reward" in table


def test_a_figure_without_a_label_goes_by_its_own_name(tmp_path):
  runs = [run | {"figures": run["figures"] | {"distinct@8": run["figures"]["entropy"]}} for run in make_runs()]
  config = CONFIG | {"diversity": ("distinct@8",)}
  page = frontier_page.write(tmp_path, {"runs": runs, "curves": {}, "config": config, "command": "", "made_now": {}})
  assert "in distinct@8: higher at 2" in page.read_text()


def test_every_method_has_a_name_and_a_users_own_keeps_its_own():
  assert [name for name in table() if pages.label(name) == name] == [] and pages.label("mine") == "mine"
