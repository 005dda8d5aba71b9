"""The guo2024 protocol against the numbers of its reference code, equal sample sizes, and its intervals."""

import gzip
import json
import os
import pathlib
import random

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import corpus_intervals
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import protocol
from qempo_jax.evaluation import semantic
from qempo_jax.evaluation import syntactic

GUO = {"protocol": "guo2024"}


def _data(name):
  folder = os.environ.get("QEMPO_DATA_DIR")
  if not folder:
    pytest.skip("QEMPO_DATA_DIR names no folder with the reference code's numbers")
  return pathlib.Path(folder) / name


def _golden(name):
  return json.loads(_data(f"golden/{name}.json").read_text(encoding="utf-8"))


def test_lexical_diversity_is_that_of_the_reference_code():
  golden = _golden("lexical_guo2024")
  with gzip.open(_data("gsm8k/test.jsonl.gz"), "rt", encoding="utf-8") as lines:
    answers = [json.loads(line)["answer"] for line in lines][:660]
  corpus = protocol.guo_corpus(answers)
  found = protocol.guo_lexical(corpus, num_ngrams=golden["ngrams_sampled"], seed=golden["seed"])
  assert found == pytest.approx(golden["value"], abs=1e-12)


def _dense(rows, columns, values):
  dense = np.zeros((rows.max() + 1, columns.max() + 1))
  dense[rows, columns] = values
  return dense


def test_weisfeiler_lehman_is_that_of_the_reference_code():
  golden = _golden("wl_kernel")
  trees = [syntactic.checked_tree(tree["upos"], tree["head"]) for tree in golden["sentences"]]
  assert syntactic.wl_diversity(trees) == pytest.approx(golden["mean_one_minus_k"], abs=1e-9)
  features = _dense(*syntactic.wl_features(trees))
  np.testing.assert_allclose((features @ features.T)[:3, :3], golden["kernel_top_left"], atol=1e-9)


def test_lexical_diversity_by_hand_when_all_is_drawn():
  # Tokens a b a, c c: three of five; bigrams ab ba cc: three of three; trigrams: aba alone.
  with pytest.raises(InputError, match="1 3-grams"):
    protocol.guo_lexical(protocol.guo_corpus(["A b, a", "c c"]), num_ngrams=3)
  assert protocol.guo_lexical(protocol.guo_corpus(["A b, a a", "c c c!?"]), num_ngrams=4) > 0
  assert protocol.guo_words("Don't STOP -- (now).") == ["don", "t", "stop", "--", "now", ")."]


def _samples(rng, num_prompts, words, num_samples=4, length=12):
  return [[" ".join(rng.choice(words, length)) for _ in range(num_samples)] for _ in range(num_prompts)]


def test_methods_are_compared_at_one_stated_size():
  rng = np.random.default_rng(0)
  words = [f"w{i}" for i in range(400)]
  methods = {"rich": _samples(rng, 10, words, num_samples=8), "poor": _samples(rng, 10, words[:40])}
  found = protocol.diversity(methods, axis="lexical", **GUO)
  assert found["rich"].sample_size == found["poor"].sample_size == 10 * 4 * 10
  assert found["rich"].interval.low > found["poor"].interval.high
  assert found["poor"].value == protocol.guo_lexical(protocol.guo_corpus(sum(methods["poor"], [])), num_ngrams=400)
  with pytest.raises(InputError, match="401"):
    protocol.diversity(methods, axis="lexical", sample_size=401, **GUO)


def test_the_semantic_axis_draws_sentences_as_the_reference_does():
  rng = np.random.default_rng(1)
  table = {f"s{i}": rng.normal(size=5) + 1 for i in range(60)}
  prompts = [[f"s{10 * p + i}" for i in range(10)] for p in range(6)]
  embed = lambda texts: np.array([table[text] for text in texts])
  found = protocol.diversity({"m": prompts}, axis="semantic", embed=embed, sample_size=40, **GUO)["m"]
  drawn = random.Random(42).sample(list(table), 40)
  assert found.value == pytest.approx(semantic.mean_pairwise_distance(embed(drawn)), abs=1e-14)
  assert found.interval.low < found.value < found.interval.high


def test_sparse_and_dense_sums_agree_and_the_syntactic_axis_runs(monkeypatch):
  rng = np.random.default_rng(2)
  trees = [
    syntactic.checked_tree(list(rng.choice(list("AB"), 4)), [0, 1, int(rng.integers(1, 3)), 1]) for _ in range(30)
  ]
  owners = np.arange(30) % 5
  rows, columns, values = syntactic.wl_features(trees)
  dense = _dense(rows, columns, values)
  monkeypatch.setattr(corpus_intervals, "_BLOCK", 3)
  for a, b in zip(
    corpus_intervals.prompt_products(dense, owners, 5),
    corpus_intervals.prompt_products_sparse(rows, columns, values, owners, 5), strict=True,
  ):  # fmt: skip
    np.testing.assert_allclose(a, b, atol=1e-12)
  found = protocol.diversity({"m": [trees[p::5] for p in range(5)]}, axis="syntactic", **GUO)["m"]
  assert found.value == pytest.approx(syntactic.wl_diversity(trees), abs=1e-12)


def _clustered(rng, num_prompts, num_items=6):
  centres = rng.normal(size=(num_prompts, 1, 3)) + 0.8
  return semantic.unit_rows((centres + 0.2 * rng.normal(size=(num_prompts, num_items, 3))).reshape(-1, 3))


def test_the_pair_interval_covers_and_the_naive_one_does_not():
  rng = np.random.default_rng(3)
  num_prompts, owners = 25, np.repeat(np.arange(25), 6)
  many = _clustered(rng, 4000).reshape(4000, 6, 3)
  means = many.mean(axis=1)
  total = means.sum(axis=0)
  between = (total @ total - np.einsum("pd,pd->", means, means)) / (4000 * 3999)
  own = (np.einsum("pd,pd->p", 6 * means, 6 * means) - 6).mean() / 30
  pairs = np.array([24 * 36, 30]) / (24 * 36 + 30)  # shares of pairs between and within prompts
  truth = 0.5 * (1 - pairs @ [between, own])
  covered, naive = 0, 0
  for trial in range(300):
    vectors = _clustered(rng, num_prompts)
    value = semantic.mean_pairwise_distance(vectors)
    found = corpus_intervals.pair_interval(
      corpus_intervals.prompt_products(vectors, owners, num_prompts), np.full(num_prompts, 6), scale=0.5,
      estimate=value, num_draws=400, seed=trial,
    )  # fmt: skip
    covered += found.low <= truth <= found.high
    distances = (1 - vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)] / 2
    naive += abs(value - truth) <= 1.96 * distances.std() / np.sqrt(len(distances))
  assert 0.88 <= covered / 300 <= 0.99
  assert naive / 300 < 0.4


def test_the_lexical_interval_covers_what_other_prompts_would_give():
  rng = np.random.default_rng(4)
  words = [f"w{i}" for i in range(600)]

  def prompts():
    return [[" ".join(rng.choice(rng.choice(words, 25), 15)) for _ in range(3)] for _ in range(20)]

  def rarefied(drawn, size=400):
    texts = [text.split() for samples in drawn for text in samples]
    ratios = []
    for n in (1, 2, 3):
      grams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
      counts = np.unique([hash(gram) for gram in grams], return_counts=True)[1]
      ratios.append(functional.rarefied_types(counts, total=len(grams), size=size) / size)
    return np.mean(ratios)

  truth = np.mean([rarefied(prompts()) for _ in range(100)])
  covered = 0
  for _ in range(100):
    drawn = prompts()
    found = _lexical_interval(drawn, rarefied(drawn))
    covered += found.low <= truth <= found.high
  assert covered >= 88


def test_sentences_and_what_is_dropped():
  text = 'One. "Two!" Three?\n\nFour'
  assert protocol.sentences(text) == ["One.", '"Two!"', "Three?", "Four"]
  assert protocol.sentences(text, drop="last") == ["One.", '"Two!"', "Three?"]
  assert protocol.sentences(text, drop="first and last") == ['"Two!"', "Three?"]
  assert protocol.sentences("One. Two.", drop="first and last") == ["One."]


def test_what_is_not_defined_is_refused():
  one = {"m": [["a b c d"]]}
  for call in (
    lambda: protocol.diversity(one, axis="lexical", protocol="other"),
    lambda: protocol.diversity(one, axis="vocal", **GUO),
    lambda: protocol.diversity(one, axis="semantic", **GUO),
    lambda: protocol.diversity(one | {"n": []}, axis="lexical", **GUO),
    lambda: protocol.sentences("text", drop="all"),
  ):
    with pytest.raises(InputError):
      call()


def _lexical_interval(prompts, estimate):
  corpus = lexical.encode([text for samples in prompts for text in samples], tokenize=str.split)
  owners = np.repeat(np.arange(len(prompts)), [len(samples) for samples in prompts])
  return corpus_intervals.lexical_interval(corpus, owners, estimate, size=400)
