"""Every diversity figure twice: over all outputs, and over the acceptable ones only (reward at or above the floor).

Diverse garbage is not diversity: a figure over all outputs is read together with the one above the floor, and beside
length, truncation, repetition and entropy, all of which move diversity figures without any gain.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from functools import partial
import os
from typing import NamedTuple

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation.intervals import Interval
from qempo_jax.evaluation.intervals import mean_interval


class Metric(NamedTuple):
  """A diversity figure of several texts.

  Attributes:
    function: from texts to the figure, NaN where there is none.
    worst: the least diverse value, which a prompt without two texts gets.
    of_tokens: whether the function takes a `lexical.Corpus`, tokenised once for all such metrics, instead of texts.
  """

  function: Callable[[Sequence[str]], float] | Callable[[lexical.Corpus], float]
  worst: float
  of_tokens: bool = False


class Figure(NamedTuple):
  """One metric over all outputs or the acceptable ones.

  Attributes:
    per_prompt: [prompts] between the samples of one prompt.
    mean: over prompts, with its interval.
    corpus: of all prompts' outputs together.
  """

  per_prompt: np.ndarray
  mean: Interval
  corpus: float


class Diversity(NamedTuple):
  """Figures of one method.

  Attributes:
    all_outputs: by metric.
    above_floor: by metric, acceptable outputs only.
    beside: reward, acceptable share, length, truncation, repetition, sequence_entropy and token_entropy where given:
      means over prompts with intervals.
    samples_per_prompt: outputs a prompt in `all_outputs`.
    acceptable_per_prompt: [prompts] outputs each prompt has in `above_floor`.
    floor: the least acceptable reward.
  """

  all_outputs: dict[str, Figure]
  above_floor: dict[str, Figure]
  beside: dict[str, Interval]
  samples_per_prompt: int
  acceptable_per_prompt: np.ndarray
  floor: float


LEXICAL_METRICS: dict[str, Metric] = {
  "distinct_1": Metric(partial(lexical.distinct_n, n=1), 0.0, of_tokens=True),
  "distinct_2": Metric(partial(lexical.distinct_n, n=2), 0.0, of_tokens=True),
  "distinct_3": Metric(partial(lexical.distinct_n, n=3), 0.0, of_tokens=True),
  "ead_1": Metric(partial(lexical.expectation_adjusted_distinct, n=1, vocabulary_size=50_000), 0.0, of_tokens=True),
  "self_bleu": Metric(lexical.self_bleu, 1.0, of_tokens=True),
  "compressed_share": Metric(lambda texts: 1 / lexical.compression_ratio(texts), 0.0),
  "mattr": Metric(lexical.moving_average_type_token_ratio, 0.0, of_tokens=True),
  "root_ttr": Metric(lexical.root_type_token_ratio, 0.0, of_tokens=True),
}


def diversity(
  texts: Sequence[Sequence[str]],
  rewards: np.ndarray,
  *,
  floor: float,
  num_tokens: np.ndarray,
  truncated: np.ndarray,
  sequence_entropy: np.ndarray | None = None,
  metrics: Mapping[str, Metric] | None = None,
  matched: int | None = None,
  level: float = 0.95,
  num_draws: int = 1000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> Diversity:
  """All figures of one method's samples.

  Diversity figures change with the number of texts, and the acceptable ones differ in number between methods and
  prompts. `matched` makes them comparable: each prompt gives its first `matched` acceptable outputs, and a prompt that
  has fewer gets the metric's worst value, so that failing a prompt never pays. Without it all acceptable ones count.

  Args:
    texts: [prompts][samples], equally many of each prompt.
    rewards: [prompts, samples].
    floor: the least reward of an acceptable output.
    num_tokens: [prompts, samples] response tokens, the ending one included.
    truncated: [prompts, samples] whether the length cap cut the response.
    sequence_entropy: [prompts, samples] sum of next-token entropies along the response, nats; token entropy is its
      prompt mean over the mean length.
    metrics: by name; `LEXICAL_METRICS` by default.
    matched: acceptable outputs a prompt, or None.
    level: of the intervals.
    num_draws: bootstrap draws.
    seed: of the bootstrap.
    clusters: families of the prompts, see `clusters.of`; None for independent prompts.

  Raises:
    InputError: if shapes differ or `matched` is below 2.
  """
  counts = {len(samples) for samples in texts}
  if len(counts) != 1 or not texts:
    raise InputError(f"Prompts have {sorted(counts)} samples: diversity figures need equally many of each prompt.")
  shape = (len(texts), counts.pop())
  arrays = {"rewards": rewards, "num_tokens": num_tokens, "truncated": truncated, "sequence_entropy": sequence_entropy}
  given = {name: np.asarray(values, float) for name, values in arrays.items() if values is not None}
  for name, values in given.items():
    if values.shape != shape or not np.all(np.isfinite(values)):
      raise InputError(f"{name} must be finite numbers of shape {shape}, one a text, not of shape {values.shape}.")
  if matched is not None and matched < 2:
    raise InputError(f"matched is {matched}: diversity is between at least 2 outputs.")
  acceptable = given["rewards"] >= floor
  everything = np.arange(acceptable.size).reshape(shape)
  kept = [positions[good][:matched] for positions, good in zip(everything, acceptable, strict=True)]
  settings = {"level": level, "num_draws": num_draws, "seed": seed, "clusters": clusters}
  metrics = LEXICAL_METRICS if metrics is None else metrics
  pooled = [text for samples in texts for text in samples]
  corpus = lexical.with_ngrams(lexical.encode(pooled), max_order=4)
  beside = {
    "reward": given["rewards"],
    "acceptable": acceptable.astype(float),
    "length": given["num_tokens"],
    "truncation": given["truncated"],
    "repetition": lexical.repeated_shares(corpus).reshape(shape),
  }
  if sequence_entropy is not None:
    beside["sequence_entropy"] = given["sequence_entropy"]
    lengths = np.maximum(1, given["num_tokens"].mean(axis=1))
    beside["token_entropy"] = given["sequence_entropy"].mean(axis=1) / lengths
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    figures = [
      _figures(metrics, pooled, corpus, prompts, least, settings, pool)
      for prompts, least in ((list(everything), 2), (kept, matched or 2))
    ]
    intervals = pool.map(partial(mean_interval, **settings), beside.values())
    all_outputs, above_floor = (finish() for finish in figures)
  return Diversity(
    all_outputs=all_outputs,
    above_floor=above_floor,
    beside=dict(zip(beside, intervals)),
    samples_per_prompt=shape[1],
    acceptable_per_prompt=np.array([len(samples) for samples in kept]),
    floor=float(floor),
  )


def _figures(metrics, texts, corpus, prompts, least, settings, pool) -> Callable[[], dict[str, Figure]]:
  """By metric: per prompt, their mean with interval, and pooled; the worst value where there is no other.

  All is computed in the pool, since gzip, sorts and products leave Python's lock: what is of texts starts at once, the
  longest first; what is of tokens when the result is called for.
  """
  cells = [(np.concatenate(prompts), 2), *((positions, least) for positions in prompts)]

  def value(metric, argument):
    found = metric.function(argument)
    return metric.worst if np.isnan(found) else float(found)

  def of_texts(metric, cell):
    positions, few = cell
    return value(metric, [texts[position] for position in positions]) if len(positions) >= few else metric.worst

  def of_tokens(cell):
    positions, few = cell
    tokens = lexical.subset(corpus, positions)
    chosen = {name: metric for name, metric in metrics.items() if metric.of_tokens}
    return {name: value(metric, tokens) if len(positions) >= few else metric.worst for name, metric in chosen.items()}

  started = {
    name: pool.map(partial(of_texts, metric), cells) for name, metric in metrics.items() if not metric.of_tokens
  }

  def finish():
    rows = list(pool.map(of_tokens, cells))
    found = {name: list(started[name]) if name in started else [row[name] for row in rows] for name in metrics}
    return {
      name: Figure(np.array(column), mean_interval(np.array(column), **settings), pooled)
      for name, (pooled, *column) in found.items()
    }

  return finish
