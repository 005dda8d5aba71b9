"""Intervals over prompts for figures of a whole corpus that are not means over prompts.

A mean over pairs of sentences is a ratio of sums over pairs of prompts, so a bootstrap over prompts needs only those
sums. A prompt drawn twice counts as two prompts, and a sentence is never paired with its own copy, which would lower
the figure. Type counts fall with every prompt drawn twice, so they use the jackknife over prompts. With `clusters`,
families of prompts are drawn or left out whole; two crossed keys as in `clusters`.
"""

import numpy as np

from qempo_jax.evaluation import clusters as families
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import lexical
from qempo_jax.evaluation.intervals import Interval

_BLOCK = 8192


def prompt_products(vectors: np.ndarray, owners: np.ndarray, num_prompts: int) -> tuple[np.ndarray, np.ndarray]:
  """Sums of dot products over pairs of rows: between prompts, and within each over pairs of different rows.

  Args:
    vectors: [items, dimensions].
    owners: [items] prompt of each.
    num_prompts: number of all prompts.

  Returns:
    [prompts, prompts] sums over all pairs (on the diagonal all pairs of one prompt, with an item and itself included),
    and [prompts] sums of squares to subtract from that diagonal for pairs of different items.
  """
  totals = np.zeros((num_prompts, vectors.shape[1]))
  np.add.at(totals, owners, vectors)
  return totals @ totals.T, np.bincount(owners, np.einsum("nd,nd->n", vectors, vectors), num_prompts)


def prompt_products_sparse(rows, columns, values, owners, num_prompts: int) -> tuple[np.ndarray, np.ndarray]:
  """`prompt_products` of sparse vectors, given as row, column and value of every entry in any order."""
  of_prompt = owners[rows]
  products = np.zeros((num_prompts, num_prompts))
  order = np.argsort(columns, kind="stable")
  of_prompt_sorted, columns, entries = of_prompt[order], columns[order], values[order]
  for start in range(0, int(columns[-1]) + 1 if len(columns) else 0, _BLOCK):
    inside = slice(*np.searchsorted(columns, [start, start + _BLOCK]))
    cells = of_prompt_sorted[inside] * _BLOCK + columns[inside] - start
    block = np.bincount(cells, entries[inside], num_prompts * _BLOCK).reshape(num_prompts, _BLOCK)
    products += block @ block.T
  return products, np.bincount(of_prompt, values**2, num_prompts)


def pair_interval(
  sums: tuple[np.ndarray, np.ndarray],
  sizes: np.ndarray,
  *,
  scale: float,
  estimate: float,
  level: float = 0.95,
  num_draws: int = 1000,
  seed: int = 0,
  clusters: families.Clusters | None = None,
) -> Interval:
  """Percentile interval of scale * (1 - mean over pairs of different items of their product), over prompts.

    sum_pq w_p w_q S_pq (p != q) + sum_p [w_p W_p + w_p (w_p - 1) S_pp*]   over the same sums of numbers of pairs,

  with w the number of times a prompt is drawn, and W_p its pairs of different items. S_pp*, between two copies of one
  prompt, is W_p scaled to the number of pairs of two prompts of that size.

  Args:
    sums: from `prompt_products`.
    sizes: [prompts] items of each.
    scale: 1 for 1 - K, 0.5 for (1 - cos) / 2.
    estimate: the figure itself.
    level: confidence level of the interval.
    num_draws: number of resamples of the prompts.
    seed: seed of the resampling.
    clusters: families of the prompts; None: independent prompts.
  """
  products, squares = sums
  sizes = np.asarray(sizes, float)
  num_prompts = len(sizes)
  clusters = families.checked(clusters, num_prompts) or families.of({"prompt": range(num_prompts)})
  if min(clusters.counts) < 2:
    return Interval(float(estimate), np.nan, np.nan)
  within = np.diagonal(products) - squares
  within_pairs = sizes * (sizes - 1)
  # Two copies of a prompt count as two similar prompts, with the mean product of the prompt's different items.
  copies = np.divide(within * sizes**2, within_pairs, out=np.zeros_like(within), where=within_pairs > 0)
  copy_pairs = np.where(within_pairs > 0, sizes**2, 0.0)
  between, between_pairs = products.copy(), np.outer(sizes, sizes)
  np.fill_diagonal(between, 0.0)
  np.fill_diagonal(between_pairs, 0.0)
  rng, weights = np.random.default_rng(seed), np.ones((num_draws, num_prompts))
  for count, labels in zip(clusters.counts, clusters.labels, strict=True):
    weights *= rng.multinomial(count, np.full(count, 1 / count), num_draws)[:, labels]
  twice = weights * (weights - 1)

  def total(across, own, two):
    return np.einsum("dp,pq,dq->d", weights, across, weights, optimize=True) + weights @ own + twice @ two

  pairs = total(between_pairs, within_pairs, copy_pairs)
  means = total(between, within, copies)[pairs > 0] / pairs[pairs > 0]
  low, high = np.quantile(scale * (1 - means), [(1 - level) / 2, (1 + level) / 2])
  return Interval(float(estimate), float(low), float(high))


def lexical_interval(
  corpus: lexical.Corpus,
  owners: np.ndarray,
  estimate: float,
  *,
  size: int,
  level: float = 0.95,
  clusters: families.Clusters | None = None,
) -> Interval:
  """Jackknife interval over prompts of the mean type-token ratio of `size` n-grams, n = 1, 2, 3.

  Each ratio is its expectation over all subsamples of `size` (rarefaction), so the subsample adds no noise. If leaving
  out a prompt leaves fewer n-grams, all methods use the least number left. The interval is estimate +- t standard
  errors, with t the quantile of Student's distribution at (prompts - 1) degrees of freedom (Efron & Stein, 1981: the
  jackknife overestimates the variance).

  Args:
    corpus: the tokenised samples.
    owners: [samples] prompt of each, from 0.
    estimate: the figure itself.
    size: n-grams drawn.
    level: confidence level of the interval.
    clusters: families of the prompts, whose variances add up for two crossed keys; None: independent prompts.
  """
  from scipy import special

  num_prompts = int(owners.max(initial=-1)) + 1
  clusters = families.checked(clusters, num_prompts) or families.of({"prompt": range(max(1, num_prompts))})
  fewest = min(clusters.counts)
  if fewest < 2 or not num_prompts:
    return Interval(float(estimate), np.nan, np.nan)
  variance = sum(_jackknife_variance(corpus, labels[owners], size) for labels in clusters.labels)
  half = special.stdtrit(fewest - 1, (1 + level) / 2) * np.sqrt(variance)
  return Interval(float(estimate), float(estimate - half), float(estimate + half))


def _jackknife_variance(corpus, owners, size):
  """Jackknife variance of the mean type-token ratio, each owner left out once."""
  count = int(owners.max()) + 1
  values = np.zeros(count)
  for n in (1, 2, 3):
    ids, text_of = lexical.ngrams(corpus, n)
    of_prompt = owners[text_of]
    counts = np.bincount(ids)
    per_prompt = np.bincount(of_prompt, minlength=count)
    drawn = min(size, len(ids) - int(per_prompt.max()))
    order = np.argsort(of_prompt, kind="stable")
    ends = np.cumsum(per_prompt)
    spectrum = np.bincount(counts)  # Number of n-grams by their count.
    for prompt in range(count):
      grams, times = np.unique(ids[order[ends[prompt] - per_prompt[prompt] : ends[prompt]]], return_counts=True)
      left = spectrum - np.bincount(counts[grams], minlength=len(spectrum))
      left += np.bincount(counts[grams] - times, minlength=len(spectrum))
      occurring = np.flatnonzero(left[1:]) + 1
      total = len(ids) - per_prompt[prompt]
      kinds = functional.rarefied_types_of(occurring, left[occurring], total=total, size=drawn)
      values[prompt] += kinds / max(1, drawn) / 3
  return (count - 1) / count * np.sum((values - values.mean()) ** 2)
