"""Judging in both orders: position bias cancels, files are checked, and length control against scikit-learn (golden)."""

import json
import pathlib

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import judging

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))
PROMPTS = [f"p{i}" for i in range(20)]


def test_a_judge_that_looks_at_the_place_only_gives_one_half():
  found = judging.win_rate(judging.ask(lambda prompt, first, second: 1.0, PROMPTS, PROMPTS, PROMPTS))
  assert found.rate == (0.5, 0.5, 0.5)
  assert (found.order_decided, found.first_preference, found.num_pairs) == (1, 1, 20)


def test_a_fair_judge_is_counted_by_prompt():
  prompts, ours, others = ["p", "p", "p", "q"], ["good"] * 4, ["bad", "bad", "bad", "better"]
  rank = {"bad": 0, "good": 1, "better": 2}
  found = judging.win_rate(judging.ask(lambda _, a, b: float(rank[a] > rank[b]), prompts, ours, others))
  assert found.rate.mean == 0.5  # 3 of 4 pairs, but one of two prompts
  assert (found.order_decided, found.first_preference, found.num_prompts) == (0, 0.5, 2)


def _write(path, rows):
  path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
  return path


ROW = {"prompt": "p", "ours": "abc", "other": "a", "ours_first": True, "preference": "ours"}


def test_a_file_gives_what_asking_gives(tmp_path):
  found = judging.read(_write(tmp_path / "j.jsonl", [ROW, ROW | {"ours_first": False, "preference": 0.25}]))
  assert (found.ours_first, found.ours_second, found.length_differences) == (1.0, 0.25, 2.0)
  assert found.prompts == ("p",)


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([ROW], "one order only"),
    ([ROW, ROW], "line 2"),
    ([ROW | {"preference": "mine"}], "from 0 to 1"),
    ([ROW | {"preference": 1.5}], "from 0 to 1"),
    ([{"prompt": "p"}], "line 1"),
    ([ROW | {"prompt": ["p"]}], "line 1: needs prompt"),
    ([], "no judgements"),
  ],
)
def test_a_bad_file_is_named(tmp_path, rows, message):
  with pytest.raises(InputError, match=message):
    judging.read(_write(tmp_path / "j.jsonl", rows))


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_a_file_that_is_absent_or_no_json_is_one_line(tmp_path, content):
  if content:
    (tmp_path / "j.jsonl").write_bytes(content)
  with pytest.raises(InputError, match="j.jsonl(, line 1: needs prompt| cannot be read)") as caught:
    judging.read(tmp_path / "j.jsonl")
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_length_control_is_scikit_learns_logistic_regression():
  case = GOLDEN["logistic"]
  wins, count = np.array(case["wins"], float), len(case["wins"])
  given = judging.Judgements(wins, wins, tuple(map(str, range(count))), np.array(case["lengths"]))
  found = judging.length_controlled_win_rate(given)
  assert found.mean == pytest.approx(case["rate"], abs=1e-6)
  assert found.low < found.mean < found.high


def test_length_control_takes_out_a_taste_for_length_alone():
  rng, covered, rates, raw = np.random.default_rng(0), 0, [], []
  for trial in range(40):
    lengths = rng.normal(60, 60, 300)
    wins = (rng.random(300) < 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std())))).astype(float)
    given = judging.Judgements(wins, wins, tuple(map(str, range(300))), lengths)
    raw.append(judging.win_rate(given, num_draws=10).rate.mean)
    found = judging.length_controlled_win_rate(given, num_draws=200, seed=trial)
    covered += found.low < 0.5 < found.high
    rates.append(found.mean)
  assert np.mean(raw) > 0.7
  assert covered >= 33 and np.mean(rates) == pytest.approx(0.5, abs=0.03)


def test_all_wins_of_one_length_stay_finite():
  given = judging.Judgements(np.ones(5), np.ones(5), tuple("abcde"), np.zeros(5))
  assert 0.99 < judging.length_controlled_win_rate(given).mean <= 1


def test_the_interval_of_a_win_rate_covers():
  rng, covered = np.random.default_rng(1), 0
  for trial in range(200):
    chance = rng.beta(3, 2, 40)[:, None]
    wins = (rng.random((40, 4)) < chance).astype(float).ravel()
    given = judging.Judgements(wins, wins, tuple(np.repeat(PROMPTS + ["q" + p for p in PROMPTS], 4)), np.zeros(160))
    found = judging.win_rate(given, num_draws=400, seed=trial).rate
    covered += found.low <= 0.6 <= found.high
  assert 0.90 <= covered / 200 <= 0.99


def test_a_judge_must_give_a_number():
  with pytest.raises(InputError, match="The judge"):
    judging.ask(lambda *_: None, ["p"], ["a"], ["b"])
  with pytest.raises(InputError, match="each side"):
    judging.ask(lambda *_: 1.0, ["p"], ["a"], [])
