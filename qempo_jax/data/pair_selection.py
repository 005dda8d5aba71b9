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


def rarities(texts: Sequence[str]) -> list[float]:
  """Minus the log of each text's share among the samples, in nats; case and outer blanks aside."""
  names = [text.strip().lower() for text in texts]
  counts = Counter(names)
  return [float(np.log(len(names) / counts[name])) for name in names]
