"""The study of countdown offline: its loss of pairs, and its tables by hand on made-up runs."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import countdown_offline
from experiments.studies import countdown_offline_tables as tables
from qempo_jax import losses
from qempo_jax.offline_losses import Example
from qempo_jax.offline_losses import ListWeights


def test_the_loss_of_pairs_is_the_weighted_mean_of_dpos():
  rng = np.random.default_rng(0)
  pi, q = jnp.asarray(-rng.exponential(3, (4, 1))), jnp.asarray(-rng.exponential(3, 4))
  chosen, rejected = jnp.array([0.25, 0.75, 0, 0]), jnp.array([0, 0, 0.5, 0.5])
  example = Example(pi, jnp.ones((4, 1), bool), q, jnp.zeros(()), ListWeights(chosen, rejected, q))
  found = countdown_offline.loss("pairs", example, 0.0, 0.5)
  one = lambda i, j: losses.dpo_loss(pi[i, 0], pi[j, 0], q[i], q[j], beta=0.5)
  expected = sum(float(chosen[i] * rejected[j]) * one(i, j) for i in (0, 1) for j in (2, 3))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def _run(seed, spots):
  """A run with (P, distinct) at each step on both puzzles of every split; seeds differ by a tenth of an answer."""
  figures = lambda right, distinct: {
    name: {split: [value] * 2 for split in ("train", "validation", "heldout")}
    for name, value in (("right", right), ("distinct", distinct + 0.1 * seed))
  }
  return {"seed": seed, "rows": [{"step": 25 * place} | figures(*spot) for place, spot in enumerate(spots)]}


@pytest.fixture
def runs():
  start = (0.3, 9.0)
  of = lambda *spots: [_run(seed, (start, *spots)) for seed in (0, 1, 2)]
  found = {f"{method}_1e-4": of((0.5, 12.0), (0.6, 10.0)) for method in tables.METHODS}
  return found | {"listwise_1e-4": of((0.55, 14.0), (0.6, 13.0)), "listwise_3e-4": of((0.59, 13.5), (0.6, 11.0))}


def test_the_rule_takes_the_most_diverse_step_and_rate_near_the_largest_reward(runs):
  found = tables.chosen(runs, "listwise")
  assert (found.point, found.step) == ("listwise_3e-4", 25)
  np.testing.assert_allclose(found.figures["heldout"]["distinct"], [13.5, 13.6, 13.7])


def test_differences_are_taken_seed_by_seed(runs):
  (row,) = [line for line in tables.differences(runs) if line.startswith("| likelihood of right samples")]
  assert row.count("3.50 [3.50, 3.50]") == 3 and "| 50 |" in row  # the noise of a seed cancels
  assert any("13.60 [13.35, 13.85]" in line for line in tables.points(runs))
