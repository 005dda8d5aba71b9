"""Summaries of evaluation rows: values, intervals, certificates, comparisons, warnings, and refusal of bad rows."""

import json
import math

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import alarms
from qempo_jax.evaluation import summary

FIGURES = (
  "reward", "entropy", "entropy_per_token", "kl", "length", "truncation", "effective_answers", "coverage",
  "distinct_answers", "answer_entropy", "answer_entropy_miller_madow",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(make_rows):
  return make_rows()


@pytest.fixture(scope="module")
def results(rows):
  # Outcomes of the rows are independent between prompts, for every wording.
  settings = {"max_kl": {"qempo_kl": 3.0}, "num_draws": 400, "cluster": ("prompt",)}
  return summary.summarise(rows, floor=0.85, run={"seed": 0}, **settings)


def _row(**changes):
  row = {"method": "grpo", "seed": 0, "split": "train", "set_name": "month", "prompt": "p", "sample": 0,
         "completion": "May", "answer": "May", "reward": 1.0, "log_prob": -1.0, "ref_log_prob": -2.0, "entropy": 1.5,
         "num_tokens": 3, "truncated": False}  # fmt: skip
  return row | changes


def test_every_policy_and_split_has_every_figure_with_an_interval(results):
  assert list(results["methods"]) == ["base", "grpo", "qempo", "qempo_kl"]
  for entry in results["methods"].values():
    assert list(entry["splits"]) == ["train", "heldout_wordings", "heldout_set"]
    for figures in entry["splits"].values():
      for name in FIGURES:
        value = figures[name]
        assert value["low"] <= value["mean"] <= value["high"], name
        assert value["by_seed"] == pytest.approx([value["mean"]])


def test_means_are_macro_averages_of_the_rows(rows, results):
  here = [row for row in rows if (row["method"], row["split"]) == ("qempo_kl", "heldout_wordings")]
  figures = results["methods"]["qempo_kl"]["splits"]["heldout_wordings"]
  assert figures["num_samples"] == len(here)
  assert figures["reward"]["mean"] == pytest.approx(np.mean([row["reward"] for row in here]))
  assert figures["kl"]["mean"] == pytest.approx(np.mean([row["log_prob"] - row["ref_log_prob"] for row in here]))
  assert figures["entropy"]["mean"] == pytest.approx(np.mean([row["entropy"] for row in here]))
  assert figures["entropy_per_token"]["mean"] == pytest.approx(figures["entropy"]["mean"] / 4)


def test_a_hand_computed_prompt():
  rows = [_row(sample=0), _row(sample=1, answer="June"), _row(sample=2), _row(sample=3, answer=None, reward=0.0)]
  figures = summary.summarise(rows, floor=0.5, num_draws=50)["methods"]["grpo"]["splits"]["train"]
  entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
  assert figures["answer_entropy"]["mean"] == pytest.approx(entropy)
  assert figures["effective_answers"] == {
    "mean": pytest.approx(math.exp(entropy)), "low": None, "high": None, "by_seed": [pytest.approx(math.exp(entropy))],
  }  # fmt: skip
  assert figures["coverage"]["mean"] == pytest.approx(2 / 12)
  assert figures["entropy_per_token"]["mean"] == pytest.approx(0.5)
  assert figures["kl"]["mean"] == pytest.approx(1.0)


def test_certificates_tell_the_policies_apart(results):
  verdicts = {
    method: [item["verdict"] for item in entry["splits"]["heldout_wordings"]["certificates"]]
    for method, entry in results["methods"].items()
  }
  assert verdicts == {"base": ["NOT MET"], "grpo": ["MET"], "qempo": ["NOT MET"], "qempo_kl": ["MET", "MET"]}


def test_comparison_at_matched_quality(results):
  found = results["comparisons"]["heldout_wordings"]
  assert set(found) == {"base", "qempo", "qempo_kl"}
  ours = found["qempo_kl"]
  assert ours["matched"] and not found["qempo"]["matched"]
  assert ours["effective_answers_ratio"]["low"] > 4 and ours["effective_answers_ratio"]["high"] < 6
  figures = [results["methods"][m]["splits"]["heldout_wordings"]["reward"]["mean"] for m in ("qempo_kl", "grpo")]
  assert ours["reward_difference"]["mean"] == pytest.approx(figures[0] - figures[1])
  assert ours["reward_difference"]["low"] < 0 < ours["reward_difference"]["high"]


def test_pooling_seeds_does_not_inflate_diversity():
  rows = [_row(sample=i, seed=seed, answer=name) for seed, name in enumerate(("May", "June")) for i in range(4)]
  figures = summary.summarise(rows, floor=0.5, num_draws=50)["methods"]["grpo"]["splits"]["train"]
  assert figures["effective_answers"]["mean"] == 1.0
  assert figures["effective_answers"]["by_seed"] == [1.0, 1.0]


def test_ratio_by_seed_where_both_sides_have_the_seeds(make_rows):
  rows = make_rows(seeds=(0, 3), splits=("heldout_set",), num_samples=6)
  results = summary.summarise(rows, floor=0.85, num_draws=50)
  assert results["methods"]["qempo_kl"]["seeds"] == [0, 3]
  by_seed = results["comparisons"]["heldout_set"]["qempo_kl"]["effective_answers_ratio"]["by_seed"]
  assert len(by_seed) == 2 and all(2 < ratio < 6 for ratio in by_seed)


def test_unequal_sample_counts_are_cut_to_the_fewest_and_said():
  rows = [_row(sample=i, method="grpo", answer="May") for i in range(2)]
  rows += [_row(sample=i, method="base", answer=("May", "June", "July")[i]) for i in reversed(range(3))]
  results = summary.summarise(rows, floor=0.5, num_draws=50)
  base = results["methods"]["base"]["splits"]["train"]
  assert (base["samples_per_prompt"], base["samples_left_out"], base["distinct_answers"]["mean"]) == (2, 1, 2.0)
  assert "unequal_samples" in {item["kind"] for item in results["warnings"]}


def test_a_prompt_without_acceptable_answers_lowers_the_mean():
  rows = [_row(sample=i, prompt=p, answer="May" if p == "a" else None) for p in "ab" for i in range(3)]
  figures = summary.summarise(rows, floor=0.5, num_draws=50)["methods"]["grpo"]["splits"]["train"]
  assert figures["effective_answers"]["mean"] == 0.5
  assert figures["prompts_without_answer"] == 0.5


def test_answer_counts_cover_every_policy_for_one_shared_prompt(rows, results):
  found = results["answers"]["train"]
  assert set(found["methods"]) == set(results["methods"])
  for method, entry in found["methods"].items():
    here = [row for row in rows if (row["method"], row["prompt"]) == (method, found["prompt"])]
    assert entry["num_samples"] == len(here) == entry["num_not_acceptable"] + sum(n for _, n in entry["counts"])


def test_warnings_name_collapse_explosion_truncation_and_a_floor_not_met(results):
  kinds = {(item["method"], item["kind"]) for item in results["warnings"] if item["split"] == "heldout_wordings"}
  assert kinds == {
    ("grpo", "collapse"), ("qempo", "explosion"), ("qempo", "truncation"), ("qempo", "floor"),
    (None, "few_texts"),  # a quarter of twelve samples
  }  # fmt: skip
  assert all(item["advice"] for item in results["warnings"])


def test_negative_kl_is_an_alarm():
  rows = [_row(prompt=str(p), sample=i, ref_log_prob=-0.5 - 0.01 * p) for p in range(20) for i in range(3)]
  results = summary.summarise(rows, floor=0.5, num_draws=50)
  assert "kl" in {item["kind"] for item in results["warnings"]}


def test_training_truncation_is_an_alarm(make_metrics):
  assert [(item["method"], item["kind"]) for item in alarms.training_warnings(make_metrics())] == [
    ("qempo", "truncation")
  ]


def test_results_survive_json_without_nan(results):
  assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_equal_seeds_give_equal_results(rows):
  few = [row for row in rows if row["split"] == "heldout_set"]
  first, second = (summary.summarise(few, floor=0.85, num_draws=50, seed=3) for _ in range(2))
  assert first == second


def test_sets_of_ones_own_and_rewards_without_a_range():
  rows = [_row(set_name="mine", prompt=str(p), sample=i, answer="x", reward=3.0) for p in range(3) for i in range(2)]
  results = summary.summarise(rows, floor=2.0, reward_range=None, set_sizes={"mine": 4}, num_draws=50)
  figures = results["methods"]["grpo"]["splits"]["train"]
  assert figures["coverage"]["mean"] == 0.25 and figures["certificates"][0]["verdict"] == "MET"


@pytest.mark.parametrize(
  ("rows", "named"),
  [
    ([], "no evaluation rows"),
    ([{key: value for key, value in _row().items() if key != "log_prob"}], "row 0 lacks 'log_prob'"),
    ([_row(), _row(sample=1, entropy=math.nan)], "row 1 has entropy = nan"),
    ([_row(reward=1.5)], r"row 0 has reward = 1.5, outside reward_range \(0.0, 1.0\)"),
    ([_row(reward="good")], "reward = 'good'"),
    ([_row(set_name="planets")], "'planets'"),
    ([_row(prompt="a"), _row(prompt="b"), _row(prompt="a", seed=1)], "seed 1 has no sample of prompt 'b'"),
  ],
)
def test_bad_rows_are_named(rows, named):
  with pytest.raises(InputError, match=named) as error:
    summary.summarise(rows, floor=0.5, num_draws=10)
  assert "\n" not in str(error.value)


def test_tasks_declare_their_families_and_the_certificate_says_what_it_speaks_of(make_rows):
  rows = make_rows({"qempo_kl": (0.95, 6, 3.0, 2.5)}, num_samples=4)
  results = summary.summarise(rows, floor=0.85, num_draws=50)
  units = results["bootstrap"]["clusters"]
  assert {split: (unit["families"], unit["generalises_to"]) for split, unit in units.items()} == {
    "train": ("17 sets x 4 wordings", "new sets and new wordings"),
    "heldout_wordings": ("8 wordings", "new wordings of these sets"),
    "heldout_set": ("4 sets", "new sets in these wordings"),
  }
  found = results["methods"]["qempo_kl"]["splits"]["heldout_wordings"]["certificates"][0]
  assert found["verdict"] == "UNDECIDED"  # 8 perfect families have the bound 0.69
  assert "136 prompts in 8 wordings. It speaks of new wordings of these sets." in found["words"]


def test_a_puzzle_is_a_family_and_its_answers_are_known():
  rows = [
    _row(set_name=f"countdown {t}", prompt=str(t), sample=i, answer=None, reward=0.0)
    for t in (24, 25)
    for i in range(2)
  ]
  results = summary.summarise(rows, floor=0.5, num_draws=50)
  assert results["bootstrap"]["clusters"]["train"]["generalises_to"] == "new puzzles"


def test_a_column_of_the_users_makes_the_families():
  rows = [
    _row(prompt=f"{t}{p}", topic=t, sample=i, reward=float(t != "c")) for t in "abc" for p in range(4) for i in range(2)
  ]
  alone = summary.summarise(rows, floor=0.5, num_draws=200)
  families = summary.summarise(rows, floor=0.5, num_draws=200, cluster=("topic",))
  assert families["bootstrap"]["clusters"]["train"] == {
    "keys": ["topic"], "families": "3 values of 'topic'", "generalises_to": "new values of 'topic'"
  }  # fmt: skip
  wide, narrow = (found["methods"]["grpo"]["splits"]["train"]["reward"] for found in (families, alone))
  assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])
  for cluster, named in (
    (("source",), "lack the column 'source'"),
    (("sample",), "several values of the cluster column"),
  ):
    with pytest.raises(InputError, match=named):
      summary.summarise(rows, floor=0.5, num_draws=10, cluster=cluster)


def test_seeds_have_an_interval_of_their_own(make_rows):
  rows = make_rows({"grpo": (0.9, 3, 1.0, 1.0)}, splits=("heldout_set",), seeds=(0, 1, 2), num_samples=4)
  reward = summary.summarise(rows, floor=0.5, num_draws=50)["methods"]["grpo"]["splits"]["heldout_set"]["reward"]
  by_seed = np.array(reward["by_seed"])
  half = 4.302653 * by_seed.std(ddof=1) / np.sqrt(3)
  assert reward["over_seeds"]["high"] == pytest.approx(by_seed.mean() + half, rel=1e-6)


def test_lost_diversity_is_split_by_hand():
  kinds = {"base": ("May", "June", "July", "x", "y"), "grpo": ("May", "May", "May", "June", "x")}
  rows = [
    _row(method=method, prompt=p, sample=i, completion=text, answer=None if text in "xy" else text, reward=float(text not in "xy"))
    for method, texts in kinds.items() for p in "ab" for i, text in enumerate(texts)
  ]  # fmt: skip
  lost = summary.summarise(rows, floor=0.5, num_draws=50)["methods"]["grpo"]["splits"]["train"]["diversity_lost"]
  assert {name: found["mean"] for name, found in lost.items()} == {"total": 2, "wrong_answers": 1, "right_answers": 1}


def test_figures_by_prompt_are_kept_so_that_anyone_can_recompute(make_rows):
  rows = make_rows({"grpo": (0.9, 3, 1.0, 1.0)}, splits=("heldout_wordings",), seeds=(0, 1), num_samples=4)
  found = summary.summarise(rows, floor=0.5, num_draws=50)["methods"]["grpo"]["splits"]["heldout_wordings"]
  kept = found["by_prompt"]
  for name, values in kept["figures"].items():
    assert np.shape(values) == (found["num_prompts"], 2)
    if found[name]["mean"] is None:  # unknown of these rows
      continue
    np.testing.assert_allclose(np.mean(np.array(values, float)), found[name]["mean"], rtol=1e-5)
    np.testing.assert_allclose(np.mean(np.array(values, float), axis=0), found[name]["by_seed"], rtol=1e-5)
  assert len(kept["prompts"]) == found["num_prompts"] == len(kept["families"]["wording"])
