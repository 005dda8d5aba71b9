"""Diversity of the samples of each prompt where no answers are known: of words, and of meaning."""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import semantic
from qempo_jax.evaluation import sentence_encoder


def figures(groups: Sequence[Sequence[str]], embed: Callable | None = None) -> dict[str, np.ndarray]:
  """By name [prompts, 1]: see `lexical.distinct_n`, `lexical.self_bleu` and `semantic.mean_pairwise_distance`.

  All depend on the number of samples and on their length: compare at the same number, and read the length beside them.

  Args:
    groups: the samples of each prompt.
    embed: texts -> [texts, D] embeddings; by default the library's sentence encoder.
  """
  embed = embed or sentence_encoder.load()
  corpora = [lexical.encode(group) for group in groups]
  found = {
    "distinct_2": [lexical.distinct_n(corpus, n=2) for corpus in corpora],
    "self_bleu": [lexical.self_bleu(corpus) for corpus in corpora],
    "semantic_distance": [semantic.mean_pairwise_distance(embed(group)) for group in groups],
  }
  return {name: np.array(values)[:, None] for name, values in found.items()}
