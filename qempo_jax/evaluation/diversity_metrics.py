"""Diversity metrics: lexical ones always, semantic ones with an encoder, syntactic ones with a parser."""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from qempo_jax.evaluation import protocol
from qempo_jax.evaluation import semantic
from qempo_jax.evaluation import syntactic
from qempo_jax.evaluation.above_floor import LEXICAL_METRICS
from qempo_jax.evaluation.above_floor import Metric

AXES = ("lexical", "semantic", "syntactic")
# Label in reports, and True if a larger value is more diverse.
LABELS = {
  "distinct_1": ("Distinct-1", True),
  "distinct_2": ("Distinct-2", True),
  "distinct_3": ("Distinct-3", True),
  "ead_1": ("EAD (V = 50,000)", True),
  "self_bleu": ("Self-BLEU", False),
  "compressed_share": ("Compressed share (gzip)", True),
  "mattr": ("MATTR (50 tokens, within outputs)", True),
  "root_ttr": ("Root type-token ratio", True),
  "semantic_distance": ("Semantic distance", True),
  "vendi": ("Vendi score (q = 1)", True),
  "syntactic_distance": ("Syntactic distance", True),
}

Embed = Callable[[Sequence[str]], np.ndarray]
Parse = Callable[[Sequence[str]], Sequence[syntactic.Tree]]


def metrics(texts: Sequence[str], *, embed: Embed | None = None, parse: Parse | None = None) -> dict[str, Metric]:
  """All available metrics by name; each distinct text is embedded and parsed once, now.

  Args:
    texts: all texts that the metrics will see, of any method and prompt.
    embed: from texts to [texts, dimensions], such as `sentence_encoder.load()`; None: no semantic metrics.
    parse: from sentences to their dependency trees, such as `syntactic.parse_with_spacy`; None: no syntactic metric.
      Texts are split by `protocol.sentences`.
  """
  available = dict(LEXICAL_METRICS)
  distinct = sorted(set(texts))
  if embed is not None and distinct:
    available |= _semantic(dict(zip(distinct, np.asarray(embed(distinct)), strict=True)))
  if parse is not None:
    sentences = [(text, sentence) for text in distinct for sentence in protocol.sentences(text)]
    trees: dict[str, list[syntactic.Tree]] = {text: [] for text in distinct}
    for (text, _), tree in zip(sentences, parse([sentence for _, sentence in sentences]), strict=True):
      trees[text].append(tree)
    of_texts = lambda chosen: syntactic.wl_diversity([tree for text in chosen for tree in trees[text]])
    available["syntactic_distance"] = Metric(of_texts, 0.0)
  return available


def _semantic(vectors) -> dict[str, Metric]:
  stacked = lambda chosen: np.array([vectors[text] for text in chosen])
  return {
    "semantic_distance": Metric(lambda chosen: semantic.mean_pairwise_distance(stacked(chosen)), 0.0),
    "vendi": Metric(lambda chosen: semantic.vendi_score_of_embeddings(stacked(chosen)), 1.0),
  }
