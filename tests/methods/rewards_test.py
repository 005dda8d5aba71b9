"""Rewards of neighbouring methods, besides the checks of `losses/battery_test`: their purpose and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import constraints
from qempo_jax import family
from qempo_jax.methods import method
from qempo_jax.methods.darling import quality_times_diversity
from qempo_jax.methods.grpo import population_std
from qempo_jax.methods.mara import mara_rewards
from qempo_jax.methods.repo import decorrelated_advantages
from qempo_jax.methods.setpo import leave_one_out_set_diversity
from qempo_jax.methods.setpo import setpo_rewards
from qempo_jax.methods.ucpo import redistribution
from qempo_jax.methods.ucpo import ucpo_advantages

GROUP = 6
FLOOR = 0.4
_random = np.random.default_rng(0)
REWARDS, LOG_PROBS = jnp.asarray(_random.random(GROUP)), jnp.asarray(-5 * _random.random(GROUP))
DISTANCES = (lambda x: jnp.abs(x[:, None] - x) / 2)(jnp.asarray(_random.random(GROUP)))
MASK = jnp.array([True, True, False, True, True, False])

# One signature for all: (rewards, log_probs, distances, mask) -> [group]
BASELINES = {
  "mara": lambda r, p, d, m: mara_rewards(r, p, m, min_reward=FLOOR, beta=0.2),
  "quality_times_diversity": lambda r, p, d, m: quality_times_diversity(r, d, m),
  "setpo": lambda r, p, d, m: setpo_rewards(1 - d, m),
  "ucpo": lambda r, p, d, m: ucpo_advantages(r, p, r > FLOOR, m, tau=0.4),
}
BASELINES = {name: jax.jit(function) for name, function in BASELINES.items()}
baselines = pytest.mark.parametrize("name", BASELINES)


def test_the_data_tells_good_from_bad_with_and_without_the_mask():
  for kept in (REWARDS, REWARDS[MASK]):
    assert 1 < np.sum(kept >= FLOOR) < len(kept)


@baselines
def test_equal_members_are_treated_alike(name):
  ones = jnp.ones(GROUP)
  found = BASELINES[name](ones, -ones, jnp.zeros((GROUP, GROUP)), None)
  expected = {"mara": 1.0, "quality_times_diversity": 0.0, "setpo": 0.0, "ucpo": 1.0}[name]
  np.testing.assert_allclose(found, np.full(GROUP, expected), atol=1e-6)


@baselines
def test_a_group_of_one_is_finite(name):
  found = BASELINES[name](jnp.ones(1), -jnp.ones(1), jnp.zeros((1, 1)), None)
  expected = {"mara": 1.0, "quality_times_diversity": 0.0, "setpo": 0.0, "ucpo": 1.0}[name]
  np.testing.assert_allclose(found, [expected])


def test_mara_makes_the_rlhf_optimum_flat_on_the_good_members():
  rewards, ref = jnp.array([1.0, 0.9, 0.2, 0.95]), jnp.array([-1.0, -4.0, -0.5, -2.0])
  augmented = mara_rewards(rewards, ref, min_reward=0.9, beta=0.3)
  optimum = family.target_log_probs(augmented, ref, alpha=0.3, beta=0.3)
  good = jnp.array([0, 1, 3])
  np.testing.assert_allclose(optimum[good], optimum[0], rtol=1e-5)
  assert augmented[0] == rewards[0] and augmented[2] == rewards[2]


def test_mara_without_good_members_leaves_rewards_alone():
  rewards, ref = jnp.array([0.1, 0.2]), jnp.array([-1.0, -4.0])
  np.testing.assert_array_equal(mara_rewards(rewards, ref, min_reward=1.0, beta=0.3), rewards)


def test_any_set_diversity_can_be_split_into_marginals():
  answers = jnp.array([0, 0, 1, 2])

  def distinct(members):  # how many different answers there are
    return jnp.sum(jnp.any(members[:, None] & (answers[:, None] == jnp.arange(3)), axis=0))

  marginals = leave_one_out_set_diversity(distinct, jnp.ones(4, bool))
  np.testing.assert_array_equal(marginals, [0, 0, 1, 1])
  np.testing.assert_allclose(advantages.leave_one_out(marginals), [-2 / 3, -2 / 3, 2 / 3, 2 / 3])


def test_ucpo_keeps_the_correct_advantages_sum_and_at_zero_is_the_base_method():
  base, correct = jnp.where(REWARDS > FLOOR, 0.7, -0.9), REWARDS > FLOOR
  for tau in (0.0, 0.5, 1.0):
    found = ucpo_advantages(base, LOG_PROBS, correct, tau=tau)
    np.testing.assert_allclose(jnp.sum(found[correct]), jnp.sum(base[correct]), rtol=1e-5)
    np.testing.assert_array_equal(found[~correct], base[~correct])
    if tau == 0:
      np.testing.assert_allclose(found, base, rtol=1e-6)
  no_correct = ucpo_advantages(base, LOG_PROBS, jnp.zeros(GROUP), tau=0.5)
  np.testing.assert_array_equal(no_correct, base)


def test_grpos_spread_is_of_the_members_that_count():
  shaped, mask = jnp.array([1.0, 3.0, 50.0]), jnp.array([True, True, False])
  assert float(population_std(shaped, mask, min_std=0.01)) == pytest.approx(1.0)
  assert float(population_std(shaped, mask, min_std=2.0)) == 2.0


def test_ucpo_leaves_responses_below_good_reward_as_they_are():
  rewards = jnp.array([0.0, 0.5, 1.0, 1.0])
  group = constraints.Group.on_policy({"reward": rewards}, jnp.ones((4, 1), bool))
  terms = method.Terms(jnp.array([-1.0, -2.0, -1.0, -3.0]), rewards, 1.0, jnp.zeros(4), 1.0, 1.0, {})
  change = redistribution(rewards - 0.6, group, terms, tau=0.5, good_reward=1.0, reward="reward")
  np.testing.assert_array_equal(change[:2], 0)
  assert change[3] > 0.1 and change[2] < -0.1


def test_full_ucpo_takes_equal_steps_on_every_correct_response():
  # The step on response k, A'_k times its chance of being drawn: equal, where GRPO's is in proportion to pi.
  pi = jnp.array([0.5, 0.2, 0.05, 0.25])
  correct = jnp.array([True, True, True, False])
  step = lambda tau: pi * ucpo_advantages(jnp.where(correct, 1.0, -3.0), jnp.log(pi), correct, tau=tau)
  np.testing.assert_allclose(step(1.0)[:3], step(1.0)[0], rtol=1e-5)
  np.testing.assert_allclose(step(0.0)[:3], pi[:3], rtol=1e-6)


def test_repo_removes_the_correlation_that_lowers_entropy_and_no_other():
  log_pi, kept = np.asarray(LOG_PROBS), np.asarray(MASK)
  base = np.asarray(REWARDS) + 0.3 * log_pi
  slope, _ = np.polyfit(log_pi[kept], base[kept], 1)
  assert slope > 0
  for share in (0.0, 0.5, 1.0):
    found = np.asarray(decorrelated_advantages(base, log_pi, MASK, share=share))[kept]
    np.testing.assert_allclose(found, base[kept] - share * slope * (log_pi - log_pi[kept].mean())[kept], rtol=1e-5)
  np.testing.assert_allclose(np.cov(found, log_pi[kept])[0, 1], 0, atol=1e-6)
  np.testing.assert_allclose(decorrelated_advantages(-base, log_pi, MASK, share=1.0)[kept], -base[kept], rtol=1e-6)
  np.testing.assert_array_equal(decorrelated_advantages(base, np.zeros(GROUP), share=1.0), np.float32(base))


def test_a_natural_step_on_the_decorrelated_advantages_keeps_entropy():
  # Table policy, exact expectations: logits += e A', whose entropy changes by -e Cov(A', log pi) + O(e^2).
  counts = np.array([8, 4, 2, 1, 1])
  group = np.repeat(np.arange(5), counts)  # every response as often as its probability says
  pi, reward = counts / 16, np.array([1.0, 1.0, 0.0, 1.0, 0.0])
  entropy = lambda p: -p @ np.log(p)

  def change(share):
    found = np.asarray(decorrelated_advantages(reward[group], np.log(pi)[group], share=share))
    moved = pi * np.exp(1e-3 * found[np.searchsorted(group, np.arange(5))])
    return (entropy(moved / moved.sum()) - entropy(pi)) / 1e-3

  assert change(0.0) < -0.05 and abs(change(1.0)) < 2e-3


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(AssertionError):
    quality_times_diversity(REWARDS, DISTANCES[:3])
  with pytest.raises(AssertionError):
    setpo_rewards(DISTANCES, MASK[:3])
  with pytest.raises(AssertionError):
    ucpo_advantages(REWARDS, LOG_PROBS, MASK[:3], tau=0.1)
