"""Diversity by a published protocol, with stated sample sizes that are equal across the methods compared.

`protocol="guo2024"` is that of Guo et al., "Benchmarking Linguistic Diversity of Large Language Models",
https://arxiv.org/abs/2412.10271, as its reference code computes it:

  lexical    words without single punctuation marks, lower-cased; for n = 1, 2, 3 the n-grams within samples, pooled,
             `num_ngrams` of them at random without replacement, their type-token ratio; the mean of the three
  syntactic  `num_sentences` sentences at random, dependency trees, 1 - K of the normalised Weisfeiler-Lehman kernel
             with 2 iterations, the mean over pairs
  semantic   the same sentences, sentence embeddings, (1 - cos) / 2, the mean over pairs

These are figures of a whole corpus and fall as the subsample grows, so its size is fixed: the protocol's number, or the
largest that every method has, as stated in the result. The protocol's own interval assumes independent pairs, which
they are not; here prompts are resampled (pairs) or left out one at a time (n-grams).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import random
import re
import string
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import corpus_intervals
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation import semantic
from qempo_jax.evaluation import syntactic
from qempo_jax.evaluation.intervals import Interval

PROTOCOLS = ("guo2024",)
NUM_NGRAMS = 40_000
NUM_SENTENCES = 3_000
SEED = 42
_PUNCTUATION = frozenset(string.punctuation)
_ORDERS = (1, 2, 3)
# Stops of Chinese, Japanese, Devanagari, Arabic and Urdu end a sentence without a following blank.
_STOPS, _CLOSERS = "\u3002\uff01\uff1f\u0964\u0965\u061f\u06d4", "\u300d\u300f\u201d\u2019\uff09"
_SENTENCE_END = re.compile(
  r"(?:(?<=[.!?])|(?<=[.!?][\"')\]\u201d\u2019]))\s+|\n\s*\n"
  rf"|(?:(?<=[{_STOPS}])|(?<=[{_STOPS}][{_CLOSERS}]))(?![{_STOPS}{_CLOSERS}])\s*"
)


class ProtocolFigure(NamedTuple):
  """One figure of one method: its value by the protocol, an interval over prompts, and its sample size."""

  value: float
  interval: Interval
  sample_size: int


def guo_words(text: str) -> list[str]:
  """The protocol's words: single punctuation marks dropped, longer runs of them kept, lower case."""
  # Case is folded after the split: lower-casing can change how some letters split.
  if text.isascii():
    return [token for token in lexical.split(text.lower()) if token not in _PUNCTUATION]
  return [token.lower() for token in lexical.split(text) if token not in _PUNCTUATION]


def guo_corpus(samples: Sequence[str]) -> lexical.Corpus:
  """The protocol's words and n-grams of the samples."""
  return lexical.with_ngrams(lexical.encode(samples, tokenize=guo_words), max_order=max(_ORDERS))


def guo_lexical(corpus: lexical.Corpus, *, num_ngrams: int = NUM_NGRAMS, seed: int = SEED) -> float:
  """Lexical diversity of a `guo_corpus` by the protocol: range (0, 1]; the paper prints it x100.

  The subsamples for n = 1, 2, 3 come in turn from one `random.Random(seed)`, as in the reference code.

  Raises:
    InputError: there are fewer than `num_ngrams` n-grams of an order, and the figure would not be comparable.
  """
  generator = random.Random(seed)
  ratios = []
  for n in _ORDERS:
    ids, _ = lexical.ngrams(corpus, n)
    if len(ids) < num_ngrams:
      raise InputError(
        f"The samples have {len(ids)} {n}-grams, and {num_ngrams} are to be drawn: sample more or lower num_ngrams "
        "for every method."
      )
    ratios.append(len(np.unique(ids[generator.sample(range(len(ids)), num_ngrams)])) / num_ngrams)
  return sum(ratios) / len(ratios)


def smallest_ngram_count(corpus: lexical.Corpus) -> int:
  """Number of n-grams of the scarcest order: the largest possible `num_ngrams`."""
  return min(len(lexical.ngrams(corpus, n)[0]) for n in _ORDERS)


def draw(items: Sequence, *, size: int, seed: int = SEED) -> list[int]:
  """Positions of `size` items drawn without replacement, as the protocol draws sentences."""
  if size > len(items):
    raise InputError(f"{size} sentences are to be drawn from {len(items)}: sample more or lower num_sentences.")
  return random.Random(seed).sample(range(len(items)), size)


def diversity(
  methods: Mapping[str, Sequence[Sequence]],
  *,
  axis: str,
  protocol: str,
  sample_size: int | None = None,
  embed: Callable[[Sequence[str]], np.ndarray] | None = None,
  level: float = 0.95,
  num_draws: int = 1000,
  seed: int = SEED,
  clusters: families.Clusters | None = None,
) -> dict[str, ProtocolFigure]:
  """One axis of the protocol for several methods at one sample size.

  Args:
    methods: by name the items of every prompt: whole samples for "lexical", sentences for "semantic", `syntactic.Tree`
      for "syntactic". Every method needs the same number of prompts.
    axis: "lexical", "syntactic" or "semantic".
    protocol: "guo2024".
    sample_size: n-grams or sentences a method; None: the protocol's, or as many as the smallest method has.
    embed: sentence encoder of the semantic axis; the protocol's own is all-mpnet-base-v2, so report yours.
    level: confidence level of the intervals.
    num_draws: number of bootstrap draws.
    seed: seed of the subsamples and of the bootstrap.
    clusters: families of the prompts, see `clusters.of`; None: independent prompts.

  Returns:
    By method a ProtocolFigure; all with the same sample size.

  Raises:
    InputError: the protocol or axis is unknown, prompts are unequal, or a method has too few items.
  """
  if protocol not in PROTOCOLS:
    raise InputError(f"There is no protocol {protocol!r}: choose {', '.join(PROTOCOLS)}.")
  if axis not in ("lexical", "syntactic", "semantic"):
    raise InputError(f"There is no axis {axis!r}: choose lexical, syntactic or semantic.")
  if axis == "semantic" and embed is None:
    raise InputError("The semantic axis needs embed, such as sentence_encoder.load().")
  counts = {len(prompts) for prompts in methods.values()}
  if len(counts) != 1:
    raise InputError(f"The methods have {sorted(counts)} prompts: a comparison needs the same prompts for all.")
  pooled = {name: [item for prompt in prompts for item in prompt] for name, prompts in methods.items()}
  if axis == "lexical":
    corpora = {name: guo_corpus(samples) for name, samples in pooled.items()}
    most, default = min(map(smallest_ngram_count, corpora.values())), NUM_NGRAMS
  else:
    most, default = min(map(len, pooled.values())), NUM_SENTENCES
  size = min(most, default) if sample_size is None else sample_size
  least = 1 if axis == "lexical" else 2
  if size < least:
    raise InputError(f"The {axis} axis needs {least} n-grams or sentences of each method at least: some have {size}.")
  results = {}
  for name, prompts in methods.items():
    owners = np.repeat(np.arange(len(prompts)), [len(items) for items in prompts])
    if axis == "lexical":
      value = guo_lexical(corpora[name], num_ngrams=size, seed=seed)
      interval = corpus_intervals.lexical_interval(
        corpora[name], owners, value, size=size, level=level, clusters=clusters
      )
    else:
      positions = draw(pooled[name], size=size, seed=seed)
      chosen = [pooled[name][position] for position in positions]
      if axis == "syntactic":
        rows, columns, values = syntactic.wl_features(chosen)
        value, scale = syntactic.wl_diversity(chosen), 1.0
        sums = corpus_intervals.prompt_products_sparse(rows, columns, values, owners[positions], len(prompts))
      else:
        vectors = semantic.unit_rows(embed(chosen))
        value, scale = semantic.mean_pairwise_distance(vectors), 0.5
        sums = corpus_intervals.prompt_products(vectors, owners[positions], len(prompts))
      sizes = np.bincount(owners[positions], minlength=len(prompts))
      interval = corpus_intervals.pair_interval(
        sums, sizes, scale=scale, estimate=value, level=level, num_draws=num_draws, seed=seed, clusters=clusters
      )
    results[name] = ProtocolFigure(value, interval, size)
  return results


def sentences(text: str, *, drop: str = "none") -> list[str]:
  """Splits a sample into sentences at . ! ? (with closing quotes) before a blank, other scripts' stops, and blank lines.

  The reference code uses NLTK's Punkt, which also knows abbreviations; pass your own sentences if that matters.

  Args:
    text: one sample.
    drop: "last" drops a last sentence that may be cut off, "first and last" both (a lone sentence stays, of two the
      first), as the reference code does for its story and its Wikipedia task; "none" keeps all.
  """
  pieces = [piece.strip() for piece in _SENTENCE_END.split(text) if piece.strip()]
  if drop == "none":
    return pieces
  if drop == "last":
    return pieces[:-1]
  if drop == "first and last":
    return pieces[1:-1] if len(pieces) > 2 else pieces[:1]
  raise InputError(f"There is no drop={drop!r}: choose 'none', 'last' or 'first and last'.")
