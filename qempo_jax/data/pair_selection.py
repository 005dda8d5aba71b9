"""Selection of preference pairs from a prompt's scored samples: pure functions from scores to indices."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qempo_jax.errors import InputError

# [(chosen, rejected), ...]: indices into a prompt's samples.
Places = list[tuple[int, int]]


def best_worst(rewards: Sequence[float], *, most: int) -> Places:
  """Pairs the best sample with the worst, the second best with the second worst, ...; equal rewards make no pair."""
  order = np.argsort(-np.asarray(rewards, float), kind="stable")
  pairs = list(zip(order, order[::-1]))[: min(most, len(order) // 2)]
  return [(int(best), int(worst)) for best, worst in pairs if rewards[best] > rewards[worst]]


def rare_good_common_bad(rewards: Sequence[float], rarity: Sequence[float], *, threshold: float, most: int) -> Places:
  """Pairs the rarest good sample with the most common bad one, the second rarest with the second most common, ...

  Source: Diverse Preference Optimization (Lanchantin et al. 2025), https://arxiv.org/abs/2501.18101

  Args:
    rewards: [G].
    rarity: [G], larger for rarer samples: `rarities`, or the negative log-prob in nats.
    threshold: smallest reward of a good sample.
    most: largest number of pairs.

  Returns:
    The pairs; empty if all samples are good, or all bad.
  """
  rewards, rarity = np.asarray(rewards, float), np.asarray(rarity, float)
  order = np.argsort(-rarity, kind="stable")
  good = [int(index) for index in order if rewards[index] >= threshold]
  bad = [int(index) for index in np.argsort(rarity, kind="stable") if rewards[index] < threshold]
  return list(zip(good, bad))[:most]


def thresholds(rewards: Sequence[float], *, good: float, bad: float, most: int) -> Places:
  """Pairs samples at or above `good` with samples at or below `bad`, in sampling order, each used once.

  Raises:
    InputError: `good` is not above `bad`.
  """
  if not good > bad:
    raise InputError(f"the good threshold {good} must be above the bad one {bad}")
  chosen = [index for index, reward in enumerate(rewards) if reward >= good]
  rejected = [index for index, reward in enumerate(rewards) if reward <= bad]
  return list(zip(chosen, rejected))[:most]


def equal_quality(
  rewards: Sequence[float],
  diversity: Sequence[float],
  *,
  good: float,
  quantile: float,
  share: float,
  uses: int,
  most: int,
) -> Places:
  """Pairs good samples of similar reward, with the more diverse one as chosen.

      |r_i - r_j| <= eps,   eps the quantile of |r_i - r_j| over pairs of good samples,   d_chosen > d_rejected

  The share of pairs with the largest difference in diversity is kept, largest first, with no sample in more than
  `uses` pairs. A loss on pairs of different quality learns quality; here quality cancels, and diversity is left.

  Source: ReDiPO (arXiv 2605.30021); reconstruction, without its rewriting of the base model's samples.

  Args:
    rewards: [G].
    diversity: [G] marginal diversity: distance of each sample from the others.
    good: smallest reward of a sample in a pair.
    quantile: quantile of reward differences, in [0, 1].
    share: share of the pairs with similar rewards, in (0, 1].
    uses: largest number of pairs per sample.
    most: largest number of pairs.

  Returns:
    The pairs; empty if fewer than two samples are good or all are equally diverse.

  Raises:
    InputError: the quantile or the share is out of range.
  """
  if not 0 <= quantile <= 1 or not 0 < share <= 1:
    raise InputError(f"tie_quantile={quantile} must be in [0, 1], and share={share} above 0 and at most 1")
  rewards, diversity = np.asarray(rewards, float), np.asarray(diversity, float)
  first, second = (np.flatnonzero(rewards >= good)[place] for place in np.triu_indices(np.sum(rewards >= good), 1))
  if not len(first):
    return []
  gaps = np.abs(rewards[first] - rewards[second])
  differences = diversity[first] - diversity[second]
  like = np.flatnonzero((gaps <= np.quantile(gaps, quantile)) & (differences != 0))
  ranked = like[np.argsort(-np.abs(differences[like]), kind="stable")][: int(np.ceil(share * len(like)))]
  used, found = Counter(), []
  for pair in ranked:
    places = int(first[pair]), int(second[pair])
    if max(used[place] for place in places) < uses:
      used.update(places)
      found.append(places if differences[pair] > 0 else places[::-1])
  return found[:most]


def rarities(texts: Sequence[str]) -> list[float]:
  """Returns the negative log of each text's share among the samples, in nats; case and outer blanks are ignored."""
  names = [text.strip().lower() for text in texts]
  counts = Counter(names)
  return [float(np.log(len(names) / counts[name])) for name in names]
