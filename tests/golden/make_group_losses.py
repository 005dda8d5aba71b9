"""Writes group_losses.npz: the online loss of version 0.1.0 and its gradients, under every combination of its options.

  python -m tests.golden.make_group_losses

It needs version 0.1.0's `online_step.group_loss` (commit ad23c00): one objective object with 9 optional features. Later
versions build the same losses from methods and constraints; `tests/methods/group_loss_test.py` holds them to this file.
"""

import itertools
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("group_losses.npz")
GROUP, LENGTH = 7, 5
MULTIPLIERS = {"quality": 3.0, "kl": 0.7, "polite": 1.6}
REPLAY_WEIGHT, MIN_STD, MAX_IMPORTANCE, BONUS = 0.7, 1e-2, 1.5, 0.3
STRENGTH = {"none": 0.0, "mara": 0.0, "ucpo": 0.6, "setpo": 0.9}
GOOD = 0.6


def combinations() -> list[tuple]:
  """(transform, entropy gradient, baseline, normalise, entropy weight, second floor, stale, token bonus), 448 of them."""
  options = itertools.product(
    STRENGTH, ("score_function", "rao_blackwell"), ("leave_one_out", "group_mean"), (False, True), (1.0, 0.0),
    (False, True), (False, True), (False, True),
  )  # fmt: skip
  return [option for option in options if option[:2] != ("mara", "rao_blackwell")]


def inputs() -> dict[str, np.ndarray]:
  """One group: five fresh responses, one of which the second reward could not score, a replayed one, and padding."""
  rng = np.random.default_rng(0)
  mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, GROUP)[:, None]
  mask[-1] = False
  similarities = rng.random((GROUP, GROUP))
  similarities = (similarities + similarities.T) / 2
  np.fill_diagonal(similarities, 1.0)
  found = {
    "log_prob": np.where(mask, -rng.gamma(1.0, 1.0, mask.shape), 0.0),
    "entropy": np.where(mask, rng.gamma(1.0, 1.0, mask.shape), 0.0),
    "mask": mask,
    "ref_log_probs": -rng.gamma(4.0, 1.0, GROUP),
    "reward": np.array([0.2, 0.9, 1.0, 0.1, 0.7, 0.8, 0.0]),
    "polite": np.array([0.4, np.nan, 0.3, 0.9, 0.5, np.nan, np.nan]),
    "fresh": np.array([True] * 5 + [False] * 2),
    "replayed": np.array([False] * 5 + [True, False]),
    "similarities": similarities,
    "behaviour_log_probs": -rng.gamma(4.0, 1.0, GROUP),
  }
  return {name: x if x.dtype == bool else x.astype(np.float32) for name, x in found.items()}
