"""Families of prompts: what is resampled, its standard error, and agreement with prompts where families are prompts."""

import numpy as np
import pytest
from scipy import stats

from qempo_jax.errors import InputError
from qempo_jax.evaluation import bounded
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import clusters
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import corpus_intervals
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import quality_floors
from qempo_jax.evaluation import studentised
from qempo_jax.rewards import open_list

SETS, WORDINGS = np.repeat(range(5), 8), np.tile(range(8), 5)
CROSSED = clusters.of({"set_name": SETS, "wording": WORDINGS})
BY_SET = clusters.of({"set_name": SETS})


def test_one_key_is_the_analysis_of_family_means():
  values = np.random.default_rng(0).normal(size=40) + SETS
  means = values.reshape(5, 8).mean(axis=1)
  estimate, error, freedom = clusters.standard_error(BY_SET.table(values), BY_SET.table(np.ones(40)))
  assert (estimate, error, freedom) == pytest.approx((means.mean(), stats.sem(means), 4))
  settings = {"level": 0.9, "num_draws": 500, "seed": 3}
  inside = (values - values.min()) / np.ptp(values)
  of_means = inside.reshape(5, 8).mean(axis=1)
  assert bounded.lower_bound(inside, lowest=0, clusters=BY_SET, **settings) == pytest.approx(
    bounded.lower_bound(of_means, lowest=0, **settings)
  )
  assert studentised.upper_bound(values, clusters=BY_SET, **settings) == pytest.approx(
    studentised.upper_bound(means, **settings)
  )
  assert comparisons.p_value(values, clusters=BY_SET) == comparisons.sign_flip_p_value(means)


def test_two_keys_add_their_variances_and_resampling_agrees():
  values = np.random.default_rng(1).normal(size=40) + SETS + 0.5 * WORDINGS
  top, bottom = CROSSED.table(values), CROSSED.table(np.ones(40))
  table = values.reshape(5, 8)
  _, error, freedom = clusters.standard_error(top, bottom)
  assert error**2 == pytest.approx(stats.sem(table.mean(axis=1)) ** 2 + stats.sem(table.mean(axis=0)) ** 2)
  assert freedom == 4
  above, below, _ = (np.concatenate(part) for part in zip(*clusters.resampled(top, bottom, num_draws=20_000, seed=0)))
  biased = table.mean(axis=1).var() / 5 + table.mean(axis=0).var() / 8
  assert np.var(above / below) == pytest.approx(biased, rel=0.08)


def test_families_of_unequal_sizes_weigh_as_many_prompts_as_they_have():
  values, labels = np.array([1.0, 1, 1, 1, 0]), ["a", "a", "a", "a", "b"]
  families = clusters.of({"topic": labels})
  assert intervals.mean_interval(values, clusters=families).mean == pytest.approx(0.8)
  # Perfect families: the ratio's worst family has the size of the largest, w_0 4 / (4 w_a + w_b + 4 w_0).
  bound = bounded.lower_bound(np.ones(5), lowest=0, clusters=families, num_draws=200_000)
  w = np.random.default_rng(9).standard_exponential((200_000, 3)) * [4, 1, 4]
  assert bound == pytest.approx(np.quantile(w[:, :2].sum(axis=1) / w.sum(axis=1), 0.05), abs=0.01)
  assert bound < bounded.lower_bound(np.ones(2), lowest=0)


def test_crossed_bounds_are_below_those_of_either_key():
  values = np.random.default_rng(2).beta(8, 2, 40)
  found = {
    name: bounded.lower_bound(values, lowest=0, clusters=key) for name, key in (("set", BY_SET), ("both", CROSSED))
  }
  assert found["both"] < found["set"] < bounded.lower_bound(values, lowest=0)
  assert bounded.upper_bound(values, highest=1, clusters=CROSSED) > values.mean()


def test_a_shared_effect_is_no_longer_taken_for_forty():
  rng, missed, found_by_prompts = np.random.default_rng(3), 0, 0
  for trial in range(200):
    values = rng.normal(size=5)[SETS] + 0.5 * rng.normal(size=40)
    interval = intervals.mean_interval(values, num_draws=300, seed=trial, clusters=CROSSED)
    missed += not interval.low <= 0 <= interval.high
    narrow = intervals.mean_interval(values, num_draws=300, seed=trial)
    found_by_prompts += not narrow.low <= 0 <= narrow.high
  assert missed / 200 <= 0.05 + 2.2 * np.sqrt(0.05 * 0.95 / 200)
  assert found_by_prompts / 200 > 0.3


def test_a_certificate_names_families_and_asks_for_new_ones():
  wordings = clusters.of({"wording": WORDINGS}, claim="new wordings of these sets")
  settings = {"constraint": "reward", "bound": 0.85, "direction": "at least", "value_range": (0, 1)}
  values = np.ones((40, 4))
  found = certificate.certify(values, clusters=wordings, **settings)
  assert found.verdict == "UNDECIDED" and found.one_sided_bound == pytest.approx(0.05 ** (1 / 8))
  assert found.further_prompts % 5 == 0 and found.families == "8 wordings"
  words = certificate.in_words(found)
  assert "in 8 wordings. It speaks of new wordings of these sets." in words and "more prompts in new families" in words
  assert certificate.certify(values, **settings).verdict == "MET"
  crossed = certificate.certify(values, clusters=CROSSED, **settings)
  assert crossed.one_sided_bound < found.one_sided_bound and crossed.families == "5 sets x 8 wordings"


def test_paired_figures_and_corpus_figures_take_families():
  rng = np.random.default_rng(4)
  base = rng.gamma(20, 0.1, (40, 3))
  values = base * (1 + 0.5 * rng.random(5))[SETS][:, None]
  for call in (intervals.paired_difference, intervals.paired_ratio):
    alone, families = call(values, base), call(values, base, clusters=CROSSED)
    assert families.mean == pytest.approx(alone.mean) and families.high - families.low > alone.high - alone.low
  compared = comparisons.compare_with("base", {"base": base, "x": values}, clusters=CROSSED)["x"]
  assert compared.p_value > comparisons.compare_with("base", {"base": base, "x": values})["x"].p_value
  gain = quality_floors.entropy_gains(values, {"base": base}, clusters=CROSSED)["base"]
  assert gain == intervals.paired_difference(values, base, clusters=CROSSED)
  vectors = rng.normal(size=(5, 6))[SETS] + 0.1 * rng.normal(size=(40, 6))
  sums, sizes = corpus_intervals.prompt_products(vectors, np.arange(40), 40), np.ones(40)
  narrow, wide = (
    corpus_intervals.pair_interval(sums, sizes, scale=0.5, estimate=0.5, clusters=key) for key in (None, BY_SET)
  )
  assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_labels_that_fit_no_prompts_are_refused():
  for columns in ({}, {"a": [1], "b": [1], "c": [1]}, {"a": [1, 2], "b": [1]}):
    with pytest.raises(InputError, match="one column or two"):
      clusters.of(columns)
  for call in (intervals.mean_interval, studentised.lower_bound, comparisons.p_value):
    with pytest.raises(InputError, match="40 labels for 3 prompts"):
      call(np.arange(3.0), clusters=CROSSED)
  one = clusters.of({"topic": [0, 0, 0]})
  assert np.isnan(intervals.mean_interval(np.arange(3.0), clusters=one).low)
  assert studentised.lower_bound(np.arange(3.0), clusters=one) == -np.inf


def test_every_open_list_prompt_has_its_set_and_wording():
  for split in open_list.SPLITS:
    tasks = open_list.tasks(split)
    found = [open_list.families(task.set_name, task.prompt) for task in tasks]
    assert [families["set_name"] for families in found] == [task.set_name for task in tasks]
    assert {families["wording"] for families in found} == set(open_list.WORDINGS[split])
  assert open_list.families("month", "Another prompt.") is None
