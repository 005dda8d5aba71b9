"""Which two of a prompt's scored samples make a pair: pure functions from scores to places."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qempo_jax.errors import InputError

# [(chosen, rejected), ...], places among a prompt's samples.
Places = list[tuple[int, int]]


def best_worst(rewards: Sequence[float], *, most: int) -> Places:
  """The best with the worst, the second best with the second worst, ...; only where their rewards differ."""
  order = np.argsort(-np.asarray(rewards, float), kind="stable")
  pairs = list(zip(order, order[::-1]))[: min(most, len(order) // 2)]
  return [(int(best), int(worst)) for best, worst in pairs if rewards[best] > rewards[worst]]


def rare_good_common_bad(rewards: Sequence[float], rarity: Sequence[float], *, threshold: float, most: int) -> Places:
  """The rarest good sample with the commonest bad one, the second rarest with the second commonest, ...

  Source: Diverse Preference Optimization (Lanchantin et al. 2025), https://arxiv.org/abs/2501.18101

  Args:
    rewards: [G].
    rarity: [G] larger is rarer: see `rarities`, or minus the log-prob in nats.
    threshold: rewards at or above it are good, others bad.
    most: pairs at most.

  Returns:
    The pairs; none where all samples are good, or all bad.
  """
  rewards, rarity = np.asarray(rewards, float), np.asarray(rarity, float)
  order = np.argsort(-rarity, kind="stable")
  good = [int(place) for place in order if rewards[place] >= threshold]
  bad = [int(place) for place in np.argsort(rarity, kind="stable") if rewards[place] < threshold]
  return list(zip(good, bad))[:most]


def thresholds(rewards: Sequence[float], *, good: float, bad: float, most: int) -> Places:
  """Samples at or above `good` with samples at or below `bad`, in the order they were drawn, each used once.

  Raises:
    InputError: the two overlap.
  """
  if not good > bad:
    raise InputError(f"the good threshold {good} must be above the bad one {bad}")
  chosen = [place for place, reward in enumerate(rewards) if reward >= good]
  rejected = [place for place, reward in enumerate(rewards) if reward <= bad]
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
  """Pairs without a quality contrast: of two good samples with like rewards, the more diverse one is chosen.

      |r_i - r_j| <= eps,   eps the quantile of |r_i - r_j| over pairs of good samples,   d_chosen > d_rejected

  Of these pairs the share with the largest difference in diversity is kept, largest first, as long as no sample is in more
  than `uses` of them. A loss on pairs with a contrast learns quality; here quality cancels, and diversity is left.

  Source: ReDiPO (arXiv 2605.30021); reconstruction, without its rewriting of the base model's samples.

  Args:
    rewards: [G].
    diversity: [G] marginal diversity: how far each sample is from the others.
    good: least reward of a sample in a pair.
    quantile: in [0, 1], of reward differences.
    share: in (0, 1], of the pairs with like rewards.
    uses: pairs of one sample, at most.
    most: pairs at most.

  Returns:
    The pairs; none where fewer than two samples are good or all are equally diverse.

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
  """Minus the log of each text's share among the samples, in nats; case and outer blanks aside."""
  names = [text.strip().lower() for text in texts]
  counts = Counter(names)
  return [float(np.log(len(names) / counts[name])) for name in names]
