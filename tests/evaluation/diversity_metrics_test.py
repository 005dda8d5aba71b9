"""The metrics available with an encoder and a parser, and the figures that a summary takes of them."""

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import semantic
from qempo_jax.evaluation import summary
from qempo_jax.evaluation import syntactic

TEXTS = ["One. Two.", "Three.", "One. Two.", "Four five."]


def _embed(texts):
  assert len(set(texts)) == len(texts)  # each distinct text is embedded once
  return np.array([[len(text), text.count("e"), 1.0] for text in texts])


def _parse(sentences):
  return [syntactic.checked_tree(["X"] * len(sentence.split()), range(len(sentence.split()))) for sentence in sentences]


def test_metrics_of_an_encoder_and_a_parser():
  found = diversity_metrics.metrics(TEXTS, embed=_embed, parse=_parse)
  assert set(found) == set(diversity_metrics.LABELS)
  vectors = np.array([_embed([text])[0] for text in TEXTS])
  assert found["semantic_distance"].function(TEXTS) == semantic.mean_pairwise_distance(vectors)
  assert found["vendi"].function(TEXTS) == semantic.vendi_score_of_embeddings(vectors)
  trees = _parse(["One.", "Two.", "Three.", "One.", "Two.", "Four five."])
  assert found["syntactic_distance"].function(TEXTS) == pytest.approx(syntactic.wl_diversity(trees))
  assert "vendi" not in diversity_metrics.metrics(TEXTS)


def _rows(rewards, method="mine"):
  return [
    {"method": method, "seed": 0, "split": "s", "set_name": "", "prompt": prompt, "sample": sample,
     "completion": text, "answer": None, "reward": reward, "log_prob": None, "ref_log_prob": None, "entropy": None,
     "num_tokens": 3, "truncated": False}
    for prompt, of_prompt in rewards.items() for sample, (text, reward) in enumerate(of_prompt)
  ]  # fmt: skip


def test_figures_above_the_floor_count_acceptable_outputs_alone():
  good, bad = [("a b c d", 1.0), ("e f g h", 1.0)], [("a b c d", 1.0), ("zzz yyy", 0.0)]
  found = summary.summarise(_rows({"p": good, "q": bad}), floor=0.5, num_draws=20)["methods"]["mine"]["splits"]["s"]
  assert found["diversity"]["all_outputs"]["distinct_2"]["mean"] == 1
  assert found["diversity"]["above_floor"]["distinct_2"]["mean"] == 0.5  # q has one acceptable output: the worst value
  assert found["diversity"]["matched"] == 2 and found["diversity"]["acceptable_per_prompt"] == 1.5
  assert found["effective_answers"]["mean"] == pytest.approx(1.5)  # two answers, and one
  assert found["solutions"]["pass@1"]["mean"] == 0.75 and "pass@8" not in found["solutions"]
  assert found["coverage"]["mean"] is None and found["entropy"]["mean"] is None and found["entropy_gains"] == {}


def test_a_floor_relative_to_the_reference_needs_it_and_pairs_prompts():
  rng = np.random.default_rng(0)
  rows = {}
  for method, gain in (("base", 0.0), ("mine", 0.2)):
    rewards = {f"p{i}": [("text", float(0.03 * i + gain + 0.01 * rng.normal())) for _ in range(4)] for i in range(20)}
    rows[method] = _rows(rewards, method)
  settings = {"floor": 0.0, "floor_kind": "reference minus", "reward_range": None, "num_draws": 50}
  found = summary.summarise(rows["base"] + rows["mine"], **settings)
  certificate = found["methods"]["mine"]["splits"]["s"]["certificates"][0]
  assert certificate["verdict"] == "MET" and certificate["estimate"] == pytest.approx(0.2, abs=0.01)
  assert found["floors"]["s"] == pytest.approx(np.mean([row["reward"] for row in rows["base"]]))
  assert found["comparisons"]["s"]["mine"]["p_values_holm"]["reward"] < 0.05
  with pytest.raises(InputError, match="needs samples of the reference"):
    summary.summarise(rows["mine"], **settings)


@pytest.mark.parametrize("num_types", [4, 2**58])  # what may be sorted together with a place, and what is too wide
def test_numbered_ngrams_are_those_counted_one_order_at_a_time(num_types):
  corpus = lexical.encode(["a b a b c", "", "b a", "a b a b c d"])._replace(num_types=num_types)
  numbered = lexical.with_ngrams(corpus, max_order=4)
  for n in (1, 2, 3, 4):
    tokens = [text.split() for text in ("a b a b c", "", "b a", "a b a b c d")]
    grams = [(owner, tuple(words[i : i + n])) for owner, words in enumerate(tokens) for i in range(len(words) - n + 1)]
    ids, owners = lexical.ngrams(lexical.subset(numbered, np.arange(4)), n)
    assert owners.tolist() == [owner for owner, _ in grams]
    assert [[a == b for b in ids] for a in ids] == [[a == b for _, b in grams] for _, a in grams]
