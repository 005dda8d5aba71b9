"""One tiny problem for every example: words of three letters of four, good if no letter follows itself.

64 words, 36 of them good. QEMPO's optimum under the floor E[r] >= 0.9 is known exactly, so that a loop in any
framework can be held to it: entropy 3.883 nats, lambda = log(0.9 * 28 / (0.1 * 36)).
"""

import itertools

import jax.numpy as jnp
import numpy as np

from qempo_jax import constraints
from qempo_jax import exact

LETTERS, LENGTH, FLOOR = 4, 3, 0.9
WORDS = jnp.array(list(itertools.product(range(LETTERS), repeat=LENGTH)))  # [64, 3]


def reward(words):
  """1 for each word [..., 3] in which no letter follows itself, else 0."""
  return jnp.all(words[..., 1:] != words[..., :-1], axis=-1).astype(jnp.float32)


def as_group(words) -> constraints.Group:
  """One group of words [G, 3] that the current policy drew, without a reference."""
  ones = jnp.ones(words.shape[0])
  rewards = {"reward": reward(words)}
  return constraints.Group(
    rewards, 0 * ones, jnp.ones(words.shape, bool), fresh=ones > 0, replayed=ones < 0, weight=ones
  )


def optimum() -> exact.ExactSolution:
  """The entropy, lambda and log-probs [64] that a loop should end at."""
  return exact.solve_qempo(reward(WORDS), min_reward=FLOOR)


def row(mean_reward, entropies, prices) -> dict:
  """One row of a history: the mean reward, the mean entropy of next-letter entropies [G, 3], and the multiplier."""
  entropy = jnp.mean(jnp.sum(entropies, axis=-1))
  return {"reward": mean_reward, "entropy": entropy, "multiplier": prices.multipliers["quality"]}


def pairs(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Chosen and rejected words, [count, 3] each, drawn uniformly and labelled by a Bradley-Terry model of the reward."""
  first, second = rng.integers(0, len(WORDS), (2, count))
  r, words = np.asarray(reward(WORDS)), np.asarray(WORDS)
  wins = rng.random(count) < 1 / (1 + np.exp(r[second] - r[first]))
  return words[np.where(wins, first, second)], words[np.where(wins, second, first)]


def summary(history: list[dict], *, last: int) -> str:
  """One line: the means of the last steps beside the exact values.

  Args:
    history: a step's "reward", "entropy" and "multiplier" each.
    last: number of steps to average.
  """
  best = optimum()
  mean = {name: np.mean([row[name] for row in history[-last:]]) for name in history[-1]}
  return (
    f"E[r] {mean['reward']:.3f} (floor {FLOOR})  entropy {mean['entropy']:.3f} ({best.entropy:.3f})  "
    f"lambda {mean['multiplier']:.3f} ({best.quality_multiplier:.3f})"
  )
