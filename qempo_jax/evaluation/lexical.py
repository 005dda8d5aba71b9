"""Lexical diversity: figures of words and n-grams of the given texts (one prompt's samples, or a corpus).

All of them change with the number and the length of texts, so compare equal numbers of samples and report lengths. None
of them measures meaning or quality: random words score best.
"""

import array
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple
import unicodedata
import zlib

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.rewards import words as tokens


def split(text: str) -> list[str]:
  """Tokens of a text, unchanged; see `rewards.words`, also for words in scripts without blanks."""
  return tokens.split(text)


def words(text: str) -> list[str]:
  """Tokens of a text, lower-cased, in composed form (NFC)."""
  if text.isascii():
    return tokens.split(text.lower())
  # Folding the case first can change how other letters split.
  return [token.lower() for token in tokens.split(unicodedata.normalize("NFC", text))]


class Corpus(NamedTuple):
  """Tokenised texts as numbers.

  Attributes:
    ids: [tokens] of all texts, concatenated; equal tokens have equal ids.
    owners: [tokens] the text of each token.
    lengths: [texts] tokens of each text.
    num_types: number of different tokens, or an upper bound of it.
    grams: for n = 1, 2, ... as computed by `with_ngrams`, [tokens] a number of the n-gram that starts there, equal for
      equal n-grams; -1 if the text ends before.
  """

  ids: np.ndarray
  owners: np.ndarray
  lengths: np.ndarray
  num_types: int
  grams: tuple[np.ndarray, ...] = ()


class _Vocabulary(dict):
  """Token ids, assigned at the first look-up."""

  def __missing__(self, token):
    number = self[token] = len(self)
    return number


def encode(texts: Sequence[str], *, tokenize: Callable[[str], Sequence[str]] = words) -> Corpus:
  """Tokenises texts once for all the figures below."""
  vocabulary, ids, lengths = _Vocabulary(), array.array("q"), np.zeros(len(texts), np.int64)
  for index, text in enumerate(texts):
    tokens = tokenize(text)
    ids.extend(map(vocabulary.__getitem__, tokens))
    lengths[index] = len(tokens)
  id_array = np.frombuffer(ids, np.int64) if ids else np.zeros(0, np.int64)
  return Corpus(id_array, np.repeat(np.arange(len(texts)), lengths), lengths, len(vocabulary))


def with_ngrams(corpus: Corpus, *, max_order: int) -> Corpus:
  """The corpus with its n-grams of all orders up to `max_order` numbered once, for it and its subsets."""
  position = np.arange(len(corpus.ids)) - (np.cumsum(corpus.lengths) - corpus.lengths)[corpus.owners]
  left = corpus.lengths[corpus.owners] - position  # Tokens from each one to its text's end.
  grams = [*corpus.grams] or [corpus.ids]
  for n in range(len(grams) + 1, max_order + 1):
    starts = np.flatnonzero(left >= n)
    joined = grams[-1][starts] * max(1, corpus.num_types) + corpus.ids[starts + n - 1]
    numbers = np.full(len(corpus.ids), -1)
    numbers[starts] = _numbered(joined)
    grams.append(numbers)
  return corpus._replace(grams=tuple(grams))


def subset(corpus: Corpus, chosen: np.ndarray) -> Corpus:
  """The texts at positions `chosen`, in that order, without tokenising again; `num_types` stays an upper bound."""
  chosen = np.asarray(chosen, np.int64)
  starts = np.cumsum(corpus.lengths) - corpus.lengths
  lengths = corpus.lengths[chosen]
  owners = np.repeat(np.arange(len(chosen)), lengths)
  position = np.arange(len(owners)) - (np.cumsum(lengths) - lengths)[owners]
  index = starts[chosen][owners] + position
  return Corpus(corpus.ids[index], owners, lengths, corpus.num_types, tuple(grams[index] for grams in corpus.grams))


def ngrams(corpus: Corpus, n: int) -> tuple[np.ndarray, np.ndarray]:
  """N-grams inside texts, never across two: their numbers, equal for equal n-grams, and the text of each."""
  if n < 1:
    raise InputError(f"n-grams need n of at least 1, not {n}.")
  if len(corpus.grams) < n:
    corpus = with_ngrams(corpus, max_order=n)
  grams = corpus.grams[n - 1]
  inside = grams >= 0
  return grams[inside], corpus.owners[inside]


def distinct_n(corpus: Corpus, *, n: int) -> float:
  """Distinct-n: different n-grams divided by all n-grams, pooled over the texts.

  Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models",
  https://arxiv.org/abs/1510.03055. Range (0, 1], 1 if no n-gram is repeated; it falls as text grows. It does not
  measure how evenly the n-grams occur. NaN without n-grams.
  """
  ids, _ = ngrams(corpus, n)
  return _num_distinct(ids) / len(ids) if len(ids) else float("nan")


def _num_distinct(ids) -> int:
  """Number of different values >= 0, by marking them in an array, or by sorting if the array would be sparse."""
  most = int(ids.max(initial=-1)) + 1
  if most > 64 * len(ids):
    return len(_distinct(ids))
  seen = np.zeros(most, bool)
  seen[ids] = True
  return int(np.count_nonzero(seen))


def _distinct(ids) -> np.ndarray:
  """Different values in rising order; np.unique's hashing is several times slower here than a sort."""
  ordered = np.sort(ids)
  return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ids) else ordered


def expectation_adjusted_distinct(corpus: Corpus, *, n: int, vocabulary_size: int) -> float:
  """EAD: different n-grams divided by their expected number among uniform draws from the vocabulary.

    EAD = N / (V (1 - ((V - 1) / V)^C)),   N different, C in all, V the vocabulary's size.

  Liu et al., "Rethinking and Refining the Distinct Metric", https://arxiv.org/abs/2202.13587 (V is the tokenizer's
  vocabulary there, for every n). Range from 0; about 1 for uniform draws, and above 1 if n-grams repeat less than that.
  It removes most of distinct-n's dependence on length, but not that on V, so report V. NaN without n-grams.
  """
  if vocabulary_size < 2:
    raise InputError(f"vocabulary_size is {vocabulary_size}: EAD needs at least 2.")
  ids, _ = ngrams(corpus, n)
  if not len(ids):
    return float("nan")
  expected = -vocabulary_size * np.expm1(len(ids) * np.log1p(-1 / vocabulary_size))
  return float(_num_distinct(ids) / expected)


def root_type_token_ratio(corpus: Corpus) -> float:
  """Root TTR: different tokens divided by the square root of tokens, pooled.

  Guiraud, "Les caractères statistiques du vocabulaire", 1954. Range from 0 to the root of the number of tokens; it
  depends on length, but less than TTR. NaN without tokens.
  """
  return _num_distinct(corpus.ids) / np.sqrt(len(corpus.ids)) if len(corpus.ids) else float("nan")


def moving_average_type_token_ratio(corpus: Corpus, *, window: int = 50) -> float:
  """MATTR: mean type-token ratio of all windows of `window` consecutive tokens, within texts.

  Covington & McFall, "Cutting the Gordian Knot: The Moving-Average Type-Token Ratio", 2010. Range (0, 1], independent
  of length; a text shorter than the window counts as one window. It measures repetition within a text, not between
  texts. NaN without tokens.
  """
  if window < 1:
    raise InputError(f"The window of MATTR is {window}: it needs at least 1 token.")
  if not len(corpus.ids):
    return float("nan")
  starts = np.cumsum(corpus.lengths) - corpus.lengths
  size = np.minimum(window, corpus.lengths)[corpus.owners]
  first, last = starts[corpus.owners], (starts + corpus.lengths)[corpus.owners] - size  # Range of windows' starts.
  position = np.arange(len(corpus.ids))
  token, order = _apart(np.sort(_together(corpus.ids, position, len(position))), len(position))
  same = (token[1:] == token[:-1]) & (corpus.owners[order][1:] == corpus.owners[order][:-1])
  previous = np.full(len(order), -1)
  previous[order[1:][same]] = order[:-1][same]
  # A token is the first of its kind in the windows that contain it and start after its previous occurrence. These
  # windows are counted by the begin and end of such runs of starts.
  low = np.maximum(np.maximum(previous + 1, position - size + 1), first)
  high = np.minimum(position, last)
  valid = low <= high
  changes = np.bincount(low[valid], minlength=len(order) + 1) - np.bincount(high[valid] + 1, minlength=len(order) + 1)
  types = np.cumsum(changes)[:-1]
  is_start = position <= last
  return float(np.mean(types[is_start] / size[is_start]))


def repeated_shares(corpus: Corpus, *, n: int = 4) -> np.ndarray:
  """[texts] share of each text's n-grams that occurred earlier in it (seq-rep-n).

  Welleck et al., "Neural Text Generation with Unlikelihood Training", https://arxiv.org/abs/1908.04319. Range [0, 1);
  0 for a text shorter than n tokens. It does not see paraphrased repetition.
  """
  count = len(corpus.lengths)
  ids, owners = ngrams(corpus, n)
  _, text = _apart(_distinct(_together(ids, owners, count)), count)
  different = np.bincount(text, minlength=count)
  total = np.bincount(owners, minlength=count)
  return np.where(total > 0, 1 - different / np.maximum(1, total), 0.0)


def compression_ratio(texts: Sequence[str]) -> float:
  """Bytes of the texts divided by bytes of one gzip stream of them, joined by spaces.

  Shaib et al., "Standardizing the Measurement of Text Diversity", https://arxiv.org/abs/2403.00553. Range from about
  0.1 (gzip's header outweighs a very short text) upward. Higher means more repetition, within and between texts, of
  strings at most 32 kB apart. It grows with length and number of texts. NaN without text.
  """
  raw = " ".join(texts).encode("utf-8", "replace")
  if not raw:
    return float("nan")
  packer = zlib.compressobj(9, zlib.DEFLATED, 31)  # 31: gzip's header and the largest window.
  return len(raw) / len(packer.compress(raw) + packer.flush())


def self_bleu(corpus: Corpus, *, max_order: int = 4) -> float:
  """Self-BLEU: mean over texts of BLEU with all the other texts as references; see `self_bleu_scores`."""
  return float(np.mean(self_bleu_scores(corpus, max_order=max_order)))


def self_bleu_scores(corpus: Corpus, *, max_order: int = 4) -> np.ndarray:
  """BLEU of every text with all the other texts as references.

    BLEU = BP * exp(mean over n of log p_n),   BP = exp(min(0, 1 - r / c)),

  with p_n the share of n-grams that occur in another text, each counted at most as often as in the text with most of
  it. r is the other text's length nearest to the text's own c (the shorter of two). The count is 0.1 if no n-gram of
  that order matches (method 1 of Chen & Cherry, 2014); the score is 0 if no token matches at all. Zhu et al.,
  "Texygen", https://arxiv.org/abs/1802.01886. Range [0, 1], 1 for equal texts, so higher means less diverse. It grows
  with the number of texts and is blind to paraphrase. Linear in the number of tokens.

  Returns:
    [texts] scores; NaN for fewer than two texts.
  """
  count = len(corpus.lengths)
  if count < 2:
    return np.full(count, np.nan)
  logs = np.zeros(count)
  for n in range(1, max_order + 1):
    matched = _matches(corpus, n, count)
    total = np.maximum(1, corpus.lengths - n + 1)
    logs += np.log(np.where(matched > 0, matched, 0.1) / total)
    if n == 1:
      has_match = matched > 0
  nearest = _nearest_other(corpus.lengths)
  with np.errstate(divide="ignore", invalid="ignore"):
    penalty = np.where(corpus.lengths > nearest, 0.0, 1 - nearest / corpus.lengths)
    return np.where(has_match, np.exp(penalty + logs / max_order), 0.0)


def _matches(corpus, n, count):
  """[texts] n-grams of each text that others have, clipped at the highest count in any one of them."""
  ids, owners = ngrams(corpus, n)
  if not len(ids):
    return np.zeros(count)
  cells = np.sort(_together(ids, owners, count))
  starts = np.flatnonzero(np.r_[True, cells[1:] != cells[:-1]])
  times = np.diff(starts, append=len(cells))
  gram, text = _apart(cells[starts], count)
  changes = np.r_[True, gram[1:] != gram[:-1]]
  first, group = np.flatnonzero(changes), np.cumsum(changes) - 1
  # The highest count among the other texts is the overall highest, except for the one text that alone has it.
  highest = np.maximum.reduceat(times, first)
  is_highest = times == highest[group]
  shared = np.add.reduceat(is_highest, first) > 1
  runner_up = np.maximum.reduceat(np.where(is_highest, 0, times), first)
  others = np.where(is_highest & ~shared[group], runner_up[group], highest[group])
  return np.bincount(text, np.minimum(times, others), count)


def _numbered(values) -> np.ndarray:
  """Ranks of the values from 0, equal for equal values."""
  count = len(values)
  if int(values.max(initial=0)).bit_length() + count.bit_length() > 63:
    return np.unique(values, return_inverse=True)[1]
  value, index = _apart(np.sort(_together(values, np.arange(count), count)), count)  # Faster than an argsort.
  numbers = np.empty(count, np.int64)
  numbers[index] = np.cumsum(np.r_[False, value[1:] != value[:-1]]) if count else 0
  return numbers


def _together(ids, indices, count):
  """One number for an n-gram and its text or position, below `count`; shifts, since integer division is slow."""
  return ids << count.bit_length() | indices


def _apart(cells, count):
  """Inverse of `_together`: (ids, indices)."""
  return cells >> count.bit_length(), cells & ((1 << count.bit_length()) - 1)


def _nearest_other(lengths):
  """[texts] length nearest to each text's own among the other texts, the shorter of two equally near."""
  order = np.argsort(lengths, kind="stable")
  ordered = lengths[order].astype(float)
  before = np.r_[-np.inf, ordered[:-1]]
  after = np.r_[ordered[1:], np.inf]
  nearest = np.where(ordered - before <= after - ordered, before, after)
  result = np.empty(len(lengths))
  result[order] = nearest
  return result
