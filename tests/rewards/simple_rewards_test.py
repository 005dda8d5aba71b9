"""Form, length, repetition, distinctness and pairwise preference: values worked out by hand."""

import random
import string

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import registry
from qempo_jax.rewards import words
from qempo_jax.rewards.distinctness import DistinctnessReward
from qempo_jax.rewards.distinctness import NgramDistinctnessReward
from qempo_jax.rewards.format import FormatReward
from qempo_jax.rewards.format import TagsReward
from qempo_jax.rewards.length import LengthReward
from qempo_jax.rewards.pairwise import PairwiseReward
from qempo_jax.rewards.repetition import CompressionReward
from qempo_jax.rewards.repetition import RepetitionReward

PROSE = (
  "The film starts slowly, with a long look at the house where the two sisters grew up, and for a while it seems that "
  "nothing much will happen. Then the younger one finds a letter, and everything they thought they knew about their "
  "father turns out to be a story he had told himself. It is well acted, and the ending stays with you."
)


def score(reward, completions, prompts=None, **columns):
  return reward(prompts or ["p"] * len(completions), completions, **columns)


def test_format_needs_the_whole_response():
  reward = FormatReward(r"\d+ (cats|dogs)")
  assert score(reward, ["3 cats", "3 cats.", " 3 cats", "3 cats\n", "cats", ""]) == [1.0, 0, 0, 0, 0, 0]
  assert score(FormatReward("a.*b"), ["a\nb", "ab", "b"]) == [1.0, 1.0, 0.0]
  with pytest.raises(InputError, match="regular expression"):
    FormatReward("(")


def test_tags_in_order_once_each_with_nothing_around():
  good = "<think>so</think>\n<answer>4</answer>\n"
  bad = [
    "<answer>4</answer><think>so</think>", good + "more", "<think>so</think>", good + good,
    "<think></think><answer>4</answer>", "<think>so<answer>4</think></answer>", "",
  ]  # fmt: skip
  assert score(TagsReward(), [good, *bad]) == [1.0, *[0.0] * len(bad)]
  assert score(TagsReward(strict=False), [good, good + "more", "<think>so</think>", ""]) == [1.0, 1.0, 0.5, 0.0]
  with pytest.raises(InputError, match="plain words"):
    TagsReward(tags=("a b",))


def test_length_falls_linearly_outside_the_range():
  reward = LengthReward(low=2, high=3, slack=2)
  assert score(reward, ["", "a", "a b", "a b c", "a b c d", "a b c d e", "a " * 9]) == [
    0.0,
    0.5,
    1.0,
    1.0,
    0.5,
    0.0,
    0.0,
  ]
  assert score(LengthReward(target=4, unit="characters"), ["abcd", "abc"]) == [1.0, 0.0]
  assert score(LengthReward(high=3), ["a b c", "a b c d"]) == [1.0, 0.0]


def test_length_in_tokens_by_a_tokenizer_or_by_the_callers_ids():
  reward = LengthReward(target=3, slack=2, unit="tokens", tokenizer=list)
  assert score(reward, ["abc", "ab"]) == [1.0, 0.5]
  assert score(reward, ["abc", "ab"], completion_ids=[[1], [1, 2, 3]]) == [0.0, 1.0]


@pytest.mark.parametrize(
  ("settings", "said"),
  [({}, "needs a target"), ({"target": 3, "low": 1}, "either"), ({"low": 3, "high": 1}, "exceed"),
   ({"target": 3, "unit": "lines"}, "'lines'"), ({"target": 3, "unit": "tokens"}, "tokenizer")],
)  # fmt: skip
def test_length_settings_that_make_no_sense(settings, said):
  with pytest.raises(InputError, match=said):
    LengthReward(**settings)


def test_repetition_is_the_share_of_different_ngrams():
  assert score(RepetitionReward(n=2), ["a b a b", "a b c d", "a", "x x x x x"]) == [2 / 3, 1.0, 1.0, 0.25]


def test_compression_lets_prose_pass_and_neither_loops_nor_noise():
  rng = random.Random(0)
  noise = "".join(rng.choice(string.printable[:95]) for _ in range(400))
  letters = "".join(rng.choice(string.ascii_lowercase + "    ") for _ in range(2000))
  prose, loop, noisy, lettered, short = score(CompressionReward(), [PROSE, "I like cats. " * 40, noise, letters, "xq!"])
  assert prose == 1.0 and short == 1.0
  assert loop == 0.0 and noisy == 0.0 and lettered < 0.5


def test_distinctness_is_the_share_of_others_that_say_something_else():
  responses = ["Paris", "paris.", "Rome", "Oslo"]
  assert score(DistinctnessReward(), responses) == pytest.approx([2 / 3, 2 / 3, 1.0, 1.0])
  quality = lambda prompts, completions, **columns: [2.0, 2.0, None, 0.5]
  assert score(DistinctnessReward(quality=quality), responses) == pytest.approx([4 / 3, 4 / 3, None, 0.5])


def test_distinctness_takes_any_equivalence_and_never_mixes_prompts():
  first_letter = lambda prompt, first, second: first[:1] == second[:1]
  reward = DistinctnessReward(equivalence=first_letter)
  prompts = ["p", "q", "p", "q", "p"]
  assert score(reward, ["ab", "ab", "ac", "b", "d"], prompts) == pytest.approx([0.5, 1.0, 0.5, 1.0, 1.0])
  assert score(reward, ["ab", "ac"], ["p", "p"], group_id=[0, 1]) == [0.0, 0.0]  # two groups of one


def test_ngram_distinctness_by_hand():
  got = score(NgramDistinctnessReward(n=1), ["a b", "a c", "a b"])
  np.testing.assert_allclose(got, [(2 / 3 + 0) / 2, 2 / 3, (2 / 3 + 0) / 2])
  assert score(NgramDistinctnessReward(n=2), ["a", "a", "b"]) == [0.5, 0.5, 1.0]


def test_pairwise_win_rates_within_the_group():
  points = {"x": 0.0, "y": np.log(3.0), "z": None}
  scorer = lambda prompts, completions, **columns: [points[text] for text in completions]
  reward = PairwiseReward(scorer)
  assert score(reward, ["x", "y", "z"]) == pytest.approx([0.25, 0.75, None])
  assert score(reward, ["x", "y"], ["p", "q"]) == [0.5, 0.5]
  against = PairwiseReward(scorer, against="reference")
  assert score(against, ["x", "y", "z", "y"], reference=["y", "y", "x", "z"]) == pytest.approx([0.25, 0.5, None, None])


def test_pairwise_mistakes():
  scorer = lambda prompts, completions, **columns: [0.0] * len(completions)
  with pytest.raises(InputError, match="column 'reference'"):
    score(PairwiseReward(scorer, against="reference"), ["x"])
  with pytest.raises(InputError, match="temperature"):
    PairwiseReward(scorer, temperature=0.0)


def test_words_of_scripts_without_blanks_are_characters():
  assert words.by_blanks("今天好。 ok") == ["今", "天", "好。", "ok"]
  assert words.split("ปีปู C++ हिन्दी") == ["ปี", "ปู", "C", "++", "हिन्दी"]
  assert words.split("“don’t” 3.5") == ["“", "don", "’", "t", "”", "3", ".", "5"]
  assert words.split("می\u200cخواهم \U0001f600\U0001f600!!") == ["می\u200cخواهم", "\U0001f600", "\U0001f600", "!!"]
  assert words.by_blanks("the C++ book.") == "the C++ book.".split()
  loop = "很好" * 20
  assert RepetitionReward()([""], [loop])[0] < 0.2
  assert LengthReward(target=40)([""], [loop]) == [1.0]


def test_a_column_that_a_reward_needs_is_named_before_anything_runs():
  def mine(prompts, completions, answer, *, level, style="plain", **columns):
    return [0.0] * len(completions)

  checked.check_columns(mine, {"answer", "level"})
  checked.check_columns(lambda prompts, completions, **columns: [], set())
  checked.check_columns(registry.resolve("length(target=3)"), set())
  with pytest.raises(InputError, match=r"mine needs the column 'level', which the rows lack \(their columns: answer\)"):
    checked.check_columns(mine, {"answer"})
