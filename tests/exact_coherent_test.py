"""QEMPO-C's exact optimum: closed forms, optimality conditions, its neighbours in the family, and a trained policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from qempo_jax import constraints
from qempo_jax import exact
from qempo_jax import methods
from qempo_jax.testing.enumerable import EnumerablePolicy
from qempo_jax.token_stats import TokenStats


def _problem(seed, size=40, good=7):
  rng = np.random.default_rng(seed)
  ref = np.log(rng.dirichlet(np.full(size, 0.5)) + 1e-9)
  return (np.arange(size) < good).astype(float), ref - np.log(np.exp(ref).sum())


@pytest.mark.parametrize("floor", [0.3, 0.9, 0.995])
def test_a_binary_reward_has_its_closed_form(x64, floor):
  rewards, ref = _problem(0)
  good, q_bad = rewards > 0, np.exp(ref)[rewards == 0].sum()
  alone = good.sum() / (good.sum() + q_bad)
  share = max(floor, alone)
  want = np.where(good, share / good.sum(), (1 - share) * np.exp(ref) / q_bad)
  found = exact.solve_qempo_coherent(rewards, ref, min_reward=floor, threshold=1.0)
  np.testing.assert_allclose(np.exp(found.log_probs), want, rtol=1e-9, atol=1e-15)
  multiplier = max(0.0, np.log(floor / (1 - floor)) + np.log(q_bad) - np.log(good.sum()))
  np.testing.assert_allclose(found.quality_multiplier, multiplier, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(found.kl, np.sum(want * (np.log(want) - ref)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_graded_rewards_meet_the_dual_minimised_by_scipy(x64, seed):
  rng = np.random.default_rng(seed)
  _, ref = _problem(seed)
  rewards, floor, threshold = rng.random(40), 0.8, 0.7
  base = np.where(rewards >= threshold, 0.0, ref)
  dual = lambda m: np.log(np.sum(np.exp(base + m * rewards))) - m * floor
  best = scipy.optimize.minimize_scalar(dual, bounds=(0, 200), method="bounded", options={"xatol": 1e-12})
  found = exact.solve_qempo_coherent(rewards, ref, min_reward=floor, threshold=threshold)
  np.testing.assert_allclose(found.quality_multiplier, best.x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(np.exp(found.log_probs) @ rewards, max(floor, float(found.expected_reward)), rtol=1e-9)


def test_the_base_measure_gives_the_whole_family(x64):
  rewards, ref = _problem(3)
  solve = lambda base: exact.solve_base_measure(rewards, base, min_reward=0.9, ref_log_probs=ref)
  same = lambda a, b: np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=1e-8, atol=1e-9)
  same(solve(ref + 5.0), exact.solve_rlhf(rewards, ref, min_reward=0.9))
  same(solve(np.zeros(40)), exact.solve_qempo(rewards, min_reward=0.9, ref_log_probs=ref))
  inside = np.where(np.arange(40) % 3 > 0, 0.0, -np.inf)
  truncated = np.exp(solve(inside).log_probs)
  assert truncated[np.arange(40) % 3 == 0].sum() == 0
  np.testing.assert_allclose(truncated @ rewards, 0.9, rtol=1e-9)


def test_more_length_adds_garbage_to_qempo_and_none_here(x64):
  """Trap 3: the bad set grows a thousandfold at the same reference mass."""
  multiplier = {}
  for bad in (95, 95_000):
    rewards, ref = (
      np.array([1.0, 0.0]),
      np.log([0.3, 0.7]),
    )  # five good strings and the bad ones, each kind in one place
    size = np.log([5.0, bad])
    solve = lambda log_base, rewards=rewards: float(
      exact.solve_base_measure(rewards, log_base, min_reward=0.9).quality_multiplier
    )
    multiplier[bad] = solve(size), solve(np.array([size[0], ref[1]]))
  np.testing.assert_allclose(multiplier[95_000][0] - multiplier[95][0], np.log(1000), rtol=1e-6)
  assert multiplier[95_000][1] == multiplier[95][1]


@pytest.mark.parametrize("seed", range(3))
def test_the_group_loss_of_all_responses_has_no_gradient_at_the_optimum(x64, seed):
  """At the optimum every shaped reward equals log Z, so the exact expected gradient vanishes; elsewhere it does not."""
  policy = EnumerablePolicy.table(vocab_size=3, max_length=3)
  rng = np.random.default_rng(seed)
  size = len(policy.space.lengths)
  rewards = (rng.random(size) < 0.3).astype(float)
  ref = np.log(rng.dirichlet(np.ones(size)))
  best = exact.solve_qempo_coherent(rewards, ref, min_reward=0.97, threshold=1.0)
  bounds = {
    "quality": constraints.reward_floor("reward", 0.97),
    "coherence": constraints.coherence_budget(None, 1.0),
  }
  prices = methods.Prices(1.0, {"quality": best.quality_multiplier, "coherence": 1.0})
  ones = np.ones(size, bool)

  def shaped_spread(log_probs):
    """The advantage of each response, read off the loss's gradient in its own log-prob."""
    group = constraints.Group({"reward": rewards}, ref, ones[:, None], ones, ~ones, np.ones(size))
    loss = lambda lp: methods.group_loss(
      TokenStats(lp[:, None], jnp.zeros((size, 1))), group, prices, bounds, methods.qempo_c(), replay_weight=0.0
    )
    return jax.grad(loss)(jnp.asarray(log_probs)) * size

  np.testing.assert_allclose(shaped_spread(best.log_probs), 0.0, atol=1e-8)
  assert np.abs(shaped_spread(ref)).max() > 0.1
