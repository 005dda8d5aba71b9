"""Lexical figures against NLTK, sacrebleu and gzip (golden), and against values counted by hand."""

import json
import pathlib
import re

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import protocol

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))
TEXTS = GOLDEN["bleu"]["texts"]


def _nltk(text):
  """NLTK's WordPunctTokenizer, lower-cased, of which the golden figures are."""
  return re.findall(r"\w+|[^\w\s]+", text.lower())


def test_words_are_those_of_nltk_in_scripts_with_blanks():
  for text, expected in zip(TEXTS, GOLDEN["bleu"]["tokens"], strict=True):
    if not re.search("[\u3000-\u9fff]", text):
      assert lexical.words(text) == expected


@pytest.mark.parametrize("order", [2, 3, 4])
def test_self_bleu_is_that_of_nltk(order):
  found = lexical.self_bleu_scores(lexical.encode(TEXTS, tokenize=_nltk), max_order=order)
  np.testing.assert_allclose(found, GOLDEN["bleu"]["nltk"][str(order)], rtol=1e-12)
  assert lexical.self_bleu(lexical.encode(TEXTS, tokenize=_nltk), max_order=order) == pytest.approx(found.mean())


def test_self_bleu_is_that_of_sacrebleu_where_nothing_is_smoothed():
  texts = [TEXTS[index] for index in GOLDEN["bleu"]["sacrebleu_of"]]
  np.testing.assert_allclose(lexical.self_bleu_scores(lexical.encode(texts)), GOLDEN["bleu"]["sacrebleu"], rtol=1e-12)


def test_self_bleu_at_its_ends():
  assert lexical.self_bleu(lexical.encode(["a b c d e"] * 3)) == pytest.approx(1)
  assert lexical.self_bleu(lexical.encode(["a b c", "d e f", ""])) == 0
  assert np.isnan(lexical.self_bleu(lexical.encode(["alone"])))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_is_the_count_over_nltks_ngrams(n):
  assert lexical.distinct_n(lexical.encode(TEXTS, tokenize=_nltk), n=n) == pytest.approx(
    GOLDEN["distinct"][str(n)], abs=1e-15
  )


def test_ngrams_never_cross_texts_and_keep_repeats():
  ids, owners = lexical.ngrams(lexical.encode(["a b a b", "b", "", "a b"]), 2)
  assert owners.tolist() == [0, 0, 0, 3] and ids[0] == ids[2] == ids[3] != ids[1]
  assert len(lexical.ngrams(lexical.encode(["a b", "c"]), 3)[0]) == 0


def test_expectation_adjusted_distinct_by_hand_and_for_uniform_draws():
  found = lexical.expectation_adjusted_distinct(lexical.encode(["a b a"]), n=1, vocabulary_size=10)
  assert found == pytest.approx(2 / (10 * (1 - 0.9**3)))
  rng = np.random.default_rng(0)
  for length in (200, 5000):  # distinct-n falls from 0.9 to 0.2 between these
    corpus = lexical.encode([" ".join(f"w{i}" for i in rng.integers(1000, size=length))])
    assert lexical.expectation_adjusted_distinct(corpus, n=1, vocabulary_size=1000) == pytest.approx(1, abs=0.03)


def test_type_token_ratios_by_hand():
  corpus = lexical.encode(["a b a c", "b"])
  assert lexical.root_type_token_ratio(corpus) == pytest.approx(3 / np.sqrt(5))
  assert lexical.moving_average_type_token_ratio(corpus, window=3) == pytest.approx((2 / 3 + 1 + 1) / 3)


def test_moving_average_equals_the_slow_way():
  rng = np.random.default_rng(1)
  texts = [" ".join(rng.choice(list("abcdefghij"), size)) for size in (70, 5, 50, 51, 1)]
  ratios = []
  for text in texts:
    tokens = text.split()
    size = min(50, len(tokens))
    ratios += [len(set(tokens[i : i + size])) / size for i in range(len(tokens) - size + 1)]
  assert lexical.moving_average_type_token_ratio(lexical.encode(texts)) == pytest.approx(np.mean(ratios))


def test_compression_ratio_is_that_of_gzip():
  # gzip implementations of zlib may differ by a byte or two between versions.
  assert lexical.compression_ratio(TEXTS) == pytest.approx(GOLDEN["others"]["gzip"], rel=0.02)
  assert lexical.compression_ratio(["the same words again"] * 50) > 10


def test_a_subset_is_what_encoding_those_texts_gives():
  chosen = [3, 0, 7, 8]
  part, fresh = lexical.subset(lexical.encode(TEXTS), chosen), lexical.encode([TEXTS[index] for index in chosen])
  assert part.lengths.tolist() == fresh.lengths.tolist() and part.owners.tolist() == fresh.owners.tolist()
  for figure in (lexical.self_bleu, lexical.moving_average_type_token_ratio, lexical.root_type_token_ratio):
    assert figure(part) == pytest.approx(figure(fresh), rel=1e-14)
  assert len(lexical.subset(lexical.encode(TEXTS), []).ids) == 0


def test_repeated_shares_by_hand():
  corpus = lexical.encode(["a b c d a b c d", "a b c", "a a a a a a", ""])
  assert lexical.repeated_shares(corpus).tolist() == pytest.approx([1 / 5, 0, 2 / 3, 0])


def test_nothing_to_measure_is_not_a_number():
  for texts in ([], ["", " "]):
    corpus = lexical.encode(texts)
    assert np.isnan(lexical.distinct_n(corpus, n=1)) and np.isnan(lexical.root_type_token_ratio(corpus))
    assert np.isnan(lexical.moving_average_type_token_ratio(corpus))
  assert np.isnan(lexical.compression_ratio([]))


def test_impossible_settings_are_refused():
  corpus = lexical.encode(["a"])
  for call in (
    lambda: lexical.ngrams(corpus, 0),
    lambda: lexical.moving_average_type_token_ratio(corpus, window=0),
    lambda: lexical.expectation_adjusted_distinct(corpus, n=1, vocabulary_size=1),
  ):
    with pytest.raises(InputError):
      call()


def test_chinese_near_copies_and_loops_are_not_diverse():
  near = ["今天天气很好我们去公园散步", "今天天气很好我们去公园跑步", "今天天气很好我们去公园散步吧"]
  corpus = lexical.encode(near)
  assert corpus.lengths.tolist() == [13, 13, 14]
  assert lexical.distinct_n(corpus, n=1) < 0.5 and lexical.self_bleu(corpus) > 0.8
  assert lexical.repeated_shares(lexical.encode(["很好" * 20, "ดีมาก" * 20, "\U0001f600" * 20])).min() > 0.8
  assert protocol.sentences("今天好！真的？是。「好。」走") == ["今天好！", "真的？", "是。", "「好。」", "走"]
  assert protocol.sentences("यह एक है। वह दो है।") == ["यह एक है।", "वह दो है।"]
  composed, decomposed = "été", "e\u0301te\u0301"
  assert lexical.words(composed) == lexical.words(decomposed)
