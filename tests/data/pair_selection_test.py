"""Selection of pairs from samples, and the rows that the command writes of them."""

import json

import numpy as np
import pytest

from configs import base
from experiments import make_pairs
from qempo_jax.data import formats
from qempo_jax.data import pair_selection
from qempo_jax.data import sources
from qempo_jax.errors import InputError
from tests.data import demo_tokenizer
from tests.loops import toy


def test_best_with_worst():
  assert pair_selection.best_worst([0.5, 1.0, 0.0, 0.5, 0.2], most=9) == [(1, 2), (0, 4)]
  assert pair_selection.best_worst([0.5, 1.0, 0.0, 0.5, 0.2], most=1) == [(1, 2)]
  assert pair_selection.best_worst([1.0] * 4, most=9) == [] == pair_selection.best_worst([], most=3)


def test_rare_and_good_with_common_and_bad():
  rewards = [1, 1, 1, 0, 0, 0]
  rarity = [0.1, 2.0, 1.0, 3.0, 0.2, 1.5]
  found = pair_selection.rare_good_common_bad(rewards, rarity, threshold=1, most=9)
  assert found == [(1, 4), (2, 5), (0, 3)]
  assert pair_selection.rare_good_common_bad(rewards, rarity, threshold=1, most=1) == [(1, 4)]
  assert pair_selection.rare_good_common_bad(rewards, rarity, threshold=2, most=9) == []


def test_thresholds_leave_the_middle_out():
  assert pair_selection.thresholds([0.9, 0.5, 0.1, 0.8, 0.2], good=0.8, bad=0.2, most=9) == [(0, 2), (3, 4)]
  with pytest.raises(InputError, match="0.2 must be above the bad one 0.2"):
    pair_selection.thresholds([1.0], good=0.2, bad=0.2, most=1)


def test_rarity_is_minus_the_log_share():
  np.testing.assert_allclose(pair_selection.rarities(["Fig", "fig ", "Plum", "FIG"]), np.log([4 / 3, 4 / 3, 4, 4 / 3]))


def test_of_equal_quality_the_more_diverse_is_chosen():
  rewards = [0.9, 0.9, 0.91, 0.95, 0.2, 0.2]
  diversity = [0.1, 0.8, 0.52, 0.9, 1.0, 0.0]  # of the last two, which are not good, the difference is largest
  settings = dict(good=0.5, uses=9, most=9)
  every = pair_selection.equal_quality(rewards, diversity, quantile=1.0, share=1.0, **settings)
  assert every == [(3, 0), (1, 0), (2, 0), (3, 2), (1, 2), (3, 1)]
  # Differences of the good: 0, .01, .01, .04, .05, .05; half of them are at most .025.
  half = pair_selection.equal_quality(rewards, diversity, quantile=0.5, share=1.0, **settings)
  assert half == [(1, 0), (2, 0), (1, 2)]
  assert pair_selection.equal_quality(rewards, diversity, quantile=0.5, share=0.34, **settings) == [(1, 0), (2, 0)]
  assert pair_selection.equal_quality(rewards, diversity, quantile=1, share=1, good=0.5, uses=1, most=9) == [
    (3, 0),
    (1, 2),
  ]
  twice = pair_selection.equal_quality(rewards, diversity, quantile=1, share=1, good=0.5, uses=2, most=3)
  assert twice == [(3, 0), (1, 0), (3, 2)]  # the first is in two pairs by then
  assert pair_selection.equal_quality(rewards, [0.3] * 6, quantile=1, share=1, **settings) == []
  assert pair_selection.equal_quality([1, 0], [1, 0], quantile=1, share=1, **settings) == []
  with pytest.raises(InputError, match="share=0.0 above 0"):
    pair_selection.equal_quality(rewards, diversity, quantile=1, share=0.0, **settings)


def _config(select):
  config = base.get_config()
  config.make_pairs.select, config.make_pairs.per_prompt = select, 9
  return config


TEXTS = ["fig", "fig", "plum", "stone", "stone", "rock", "kiwi", " "]
REWARDS = [1, 1, 1, 0, 0, 0, 1, 0]


def test_the_rows_are_trls_and_read_back(tmp_path):
  select = make_pairs.selection(_config("rare_good_common_bad"))
  cut = [False] * 6 + [True, False]  # the kiwi was cut; the last sample is blank
  rows = make_pairs.rows_of({"prompt": "Name a fruit.", "split": "train"}, TEXTS, REWARDS, cut, select)
  assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
    ("plum", "stone"),
    ("fig", "stone"),
    ("fig", "rock"),
  ]
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = sources.load(f"jsonl:{path}", needs=formats.PAIR)
  assert found.formats == {"preference, explicit prompt, conversational": 3}
  assert found.examples[0].row == {
    "split": "train",
    "prompt": "Name a fruit.",
    "score_chosen": 1.0,
    "score_rejected": 0.0,
  }


@pytest.mark.parametrize(("select", "count"), [("best_worst", 3), ("thresholds", 3)])
def test_every_choice_makes_pairs_of_different_texts(select, count):
  rows = make_pairs.rows_of({"prompt": "p"}, TEXTS, REWARDS, [False] * 8, make_pairs.selection(_config(select)))
  assert len(rows) == count and all(row["chosen"] != row["rejected"] for row in rows)
  assert all(row["score_chosen"] > row["score_rejected"] for row in rows)


def test_pairs_of_equal_quality_have_like_scores_and_the_rarer_text_first():
  config = _config("equal_quality")
  config.make_pairs.tie_quantile, config.make_pairs.share = 1.0, 1.0
  rows = make_pairs.rows_of({"prompt": "p"}, TEXTS, REWARDS, [False] * 8, make_pairs.selection(config))
  said = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
  assert said == {("plum", "fig"), ("kiwi", "fig")}  # two figs: each is less distinct than plum and kiwi
  assert all(row["score_chosen"] == row["score_rejected"] == 1 for row in rows)


def test_all_samples_are_kept_with_their_scores_and_join_another_models(tmp_path):
  select = make_pairs.selection(_config("scored"))
  row = {"prompt": "Name a fruit.", "target": 3}
  (kept,) = make_pairs.rows_of(row, TEXTS, REWARDS, [False] * 6 + [True, False], select)
  assert kept == row | {"responses": TEXTS[:6], "scores": REWARDS[:6]}
  path = tmp_path / "scored.jsonl"
  path.write_text(json.dumps(kept) + "\n")
  config = _config("equal_quality")
  config.make_pairs.pool = f"jsonl:{path}"
  pool = make_pairs._pool(config)
  assert pool[make_pairs._key(row)] == (row | {"split": "train"}, TEXTS[:6], REWARDS[:6])
  assert make_pairs._key({"prompt": "Name a fruit.", "target": 4}) not in pool


def test_an_unknown_choice_is_named():
  with pytest.raises(InputError, match="make_pairs.select='all' is not one of best_worst"):
    make_pairs.selection(_config("all"))
  config = _config("thresholds")
  config.make_pairs.good = config.make_pairs.bad = 0.5
  with pytest.raises(InputError, match="make_pairs.good=0.5 must be above make_pairs.bad=0.5"):
    make_pairs.selection(config)


def test_samples_that_were_cut_make_no_pairs_and_are_counted(tmp_path, monkeypatch, capsys):
  config = toy.small(toy.config(tmp_path))
  config.sampling.max_response_length = 1  # a token alone, or an end alone, which is blank
  monkeypatch.setattr(make_pairs.build_policy, "policy", lambda config: toy.policy())
  with pytest.raises(InputError, match=r"no prompt's samples make a pair; \d+ of 64 samples were cut .* raise it"):
    make_pairs.main(config, tmp_path / "cut", False)
  config.sampling.max_response_length = 4
  make_pairs.main(config, tmp_path / "pairs", False)
  said = capsys.readouterr().out
  assert "of 64 samples were cut at sampling.max_response_length, and are left out" in said
  found = (tmp_path / "pairs" / make_pairs.FILE).read_text()
  scores, calls = make_pairs.sampling.group_rewards, []

  def fail_once(*args):
    calls.append(args)
    if len(calls) == 3:
      raise RuntimeError("out of memory")
    return scores(*args)

  monkeypatch.setattr(make_pairs.sampling, "group_rewards", fail_once)
  with pytest.raises(RuntimeError):
    make_pairs.main(config, tmp_path / "again", False)
  make_pairs.main(config, tmp_path / "again", False)  # goes on with the third batch of four
  assert found and (tmp_path / "again" / make_pairs.FILE).read_text() == found and len(calls) == 5
  assert not list((tmp_path / "again").glob("*.part"))


def test_a_log_of_pairs_makes_other_pairs_without_a_model(tmp_path, monkeypatch, capsys):
  """The first text won and lost, so its score is a half; the last is too long."""
  say = lambda text: [{"role": "assistant", "content": text}]
  first, second, third = "one two three four five", "one two three four six", "ten apples and some plums"
  compared = [(first, "no"), (second, first), (third, first), (" ".join([third] * 9), first), (first, "no")]
  path = tmp_path / "log.jsonl"
  rows = [
    {"prompt": "p", "chosen": say(good), "rejected": say(bad), "chosen_model": "m", "origin": "log"}
    for good, bad in compared
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = _config("equal_quality")
  config.make_pairs.sample, config.make_pairs.tie_quantile, config.make_pairs.share = False, 1.0, 1.0
  with pytest.raises(InputError, match="make_pairs.sample=False takes all responses from make_pairs.pool: name a file"):
    make_pairs.main(config, tmp_path / "pairs", False)
  config.make_pairs.pool = f"jsonl:{path}"
  config.make_pairs.good = 0.4
  config.sampling.max_response_length = 16
  monkeypatch.setattr(make_pairs.build_policy, "load_tokenizer", lambda config: demo_tokenizer.load())
  make_pairs.main(config, tmp_path / "pairs", False)
  found = [json.loads(line) for line in (tmp_path / "pairs" / make_pairs.FILE).read_text().splitlines()]
  said = {(row["chosen"][0]["content"], row["rejected"][0]["content"], row["score_rejected"]) for row in found}
  assert said == {(third, first, 0.4), (third, second, 1.0)} and len(found) == 2
  assert found[0]["origin"] == "log" and "chosen_model" not in found[0]
  assert "1 of 5 responses to 1 prompts are over sampling.max_response_length=16" in capsys.readouterr().out
  config.make_pairs.good = 2.0
  with pytest.raises(InputError, match="no prompt of make_pairs.pool makes a pair; 1 of 5 .* loosen make_pairs.good"):
    make_pairs.main(config, tmp_path / "none", False)
