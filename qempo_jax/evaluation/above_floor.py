"""Diversity figures over all outputs and over the acceptable ones, whose reward is at or above the floor.

Diverse garbage is not diversity. Read a figure over all outputs together with the one above the floor, and with length,
truncation, repetition and entropy, which all change diversity figures without any gain.
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
    function: maps texts to the figure; NaN if it is undefined.
    worst: least diverse value, for prompts with fewer than two texts.
    of_tokens: True if the function takes a `lexical.Corpus`, tokenised once for all such metrics, instead of texts.
  """

  function: Callable[[Sequence[str]], float] | Callable[[lexical.Corpus], float]
  worst: float
  of_tokens: bool = False


class Figure(NamedTuple):
  """One metric over all outputs or over the acceptable ones.

  Attributes:
    per_prompt: [prompts] diversity between the samples of one prompt.
    mean: mean over prompts, with its interval.
    corpus: diversity of all prompts' outputs together.
  """

  per_prompt: np.ndarray
  mean: Interval
  corpus: float


class Diversity(NamedTuple):
  """Figures of one method.

  Attributes:
    all_outputs: figures by metric.
    above_floor: figures by metric, acceptable outputs only.
    beside: means over prompts, with intervals, of reward, acceptable share and repetition, and of length, truncation,
      sequence_entropy and token_entropy if given.
    samples_per_prompt: outputs a prompt in `all_outputs`.
    acceptable_per_prompt: [prompts] outputs of each prompt in `above_floor`.
    floor: least acceptable reward.
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
  num_tokens: np.ndarray | None = None,
  truncated: np.ndarray | None = None,
  sequence_entropy: np.ndarray | None = None,
  metrics: Mapping[str, Metric] | None = None,
  matched: int | None = None,
  level: float = 0.95,
  num_draws: int = 1000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> Diversity:
  """Computes all figures of one method's samples.

  Diversity figures change with the number of texts, and methods and prompts differ in their numbers of acceptable ones.
  `matched` makes them comparable: each prompt contributes its first `matched` acceptable outputs. A prompt with fewer
  gets the metric's worst value, so that failing a prompt never pays. Without `matched` all acceptable outputs count.

  Args:
    texts: the samples of each prompt, equally many of each.
    rewards: [prompts, samples].
    floor: least reward of an acceptable output.
    num_tokens: [prompts, samples] response tokens, EOS included; None: unknown.
    truncated: [prompts, samples] True if the length limit cut the response; None: unknown.
    sequence_entropy: [prompts, samples] sum of next-token entropies along the response, nats; None: unknown. Token
      entropy, where lengths are known too, is its prompt mean divided by the mean length.
    metrics: metrics by name; None: `LEXICAL_METRICS`.
    matched: acceptable outputs a prompt, or None.
    level: confidence level of the intervals.
    num_draws: number of bootstrap draws.
    seed: seed of the bootstrap.
    clusters: families of the prompts, see `clusters.of`; None: independent prompts.

  Raises:
    InputError: shapes differ, or `matched` is below 2.
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
    "repetition": lexical.repeated_shares(corpus).reshape(shape),
  }
  names = {"num_tokens": "length", "truncated": "truncation", "sequence_entropy": "sequence_entropy"}
  beside |= {name: given[field] for field, name in names.items() if field in given}
  if {"num_tokens", "sequence_entropy"} <= given.keys():
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
  """Figures by metric: per prompt, their mean with its interval, and pooled; the worst value if undefined.

  Everything runs in the pool, since gzip, sorts and products release Python's lock. Metrics of texts start at once,
  the slowest first; metrics of tokens start when the result is requested.
  """
  cells = [(np.concatenate(prompts), 2), *((positions, least) for positions in prompts)]

  def value(metric, argument):
    result = metric.function(argument)
    return metric.worst if np.isnan(result) else float(result)

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
    columns = {name: list(started[name]) if name in started else [row[name] for row in rows] for name in metrics}
    return {
      name: Figure(np.array(column), mean_interval(np.array(column), **settings), pooled)
      for name, (pooled, *column) in columns.items()
    }

  return finish
