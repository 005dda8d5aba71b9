"""QEMPO-C's exact optimum: closed forms, optimality conditions, its neighbours in the family, and its offline target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from qempo_jax import exact
from qempo_jax import losses
from qempo_jax.errors import InputError
from qempo_jax.testing.enumerable import EnumerablePolicy


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


def _several(sizes=(7, 1, 20), size=40):
  """Prompts with this many acceptable responses each: rewards [P, Y], normalised reference [P, Y]."""
  rewards, ref = zip(*(_problem(seed, size, good) for seed, good in enumerate(sizes)))
  return np.stack(rewards), np.stack(ref)


@pytest.mark.parametrize("floor", [0.3, 0.8, 0.99])
def test_one_multiplier_for_many_prompts_from_two_numbers_a_prompt(x64, floor):
  rewards, ref = _several()
  number, mass = rewards.sum(1), np.where(rewards, 0, np.exp(ref)).sum(1)
  best = exact.solve_qempo_coherent(rewards, ref, min_reward=floor, threshold=1.0)
  found = jax.jit(lambda *x: exact.qempo_coherent_binary(*x, min_reward=floor))(number, mass)
  np.testing.assert_allclose(found.quality_multiplier, best.quality_multiplier, rtol=1e-7, atol=1e-9)
  np.testing.assert_allclose(found.acceptable_share, best.expected_reward, rtol=1e-8)
  np.testing.assert_allclose(found.log_partition, np.log(number * np.exp(best.quality_multiplier) + mass), rtol=1e-8)
  np.testing.assert_allclose(found.free_floor, np.mean(number / (number + mass)), rtol=1e-12)
  target = exact.coherent_target_log_probs(
    rewards > 0,
    ref,
    acceptable_share=found.acceptable_share,
    num_acceptable=number,
    ref_unacceptable=mass,
  )
  np.testing.assert_allclose(target, best.log_probs, rtol=1e-8)
  np.testing.assert_allclose(np.exp(target).sum(1), 1, rtol=1e-9)


def test_bounds_of_the_two_numbers_bound_the_multiplier():
  at = lambda number, mass: float(exact.qempo_coherent_binary(number, mass, min_reward=0.95).quality_multiplier)
  truth = at(4.0, 0.7)
  np.testing.assert_allclose(truth, np.log(19) + np.log(0.7 / 4), rtol=1e-5)
  assert at(2.0, 0.7) > truth and at(4.0, 1.0) > truth and at(1000.0, 0.7) == 0


def test_the_highest_floor_is_the_share_of_prompts_with_an_answer():
  number, mass = np.array([3.0, 0.0, 5.0, 2.0]), np.array([0.5, 1.0, 0.0, 0.9])
  best = exact.qempo_coherent_binary(number, mass, min_reward=0.75)
  assert best.quality_multiplier == np.inf and best.highest_floor == 0.75
  np.testing.assert_allclose(best.acceptable_share, [1, 0, 1, 1])
  below = exact.qempo_coherent_binary(number, mass, min_reward=0.74)
  np.testing.assert_allclose(np.mean(below.acceptable_share), 0.74, rtol=1e-5)
  assert np.isfinite(below.log_partition).all()
  with pytest.raises(exact.InfeasibleError, match="75% of the prompts .* at most 0.75"):
    exact.qempo_coherent_binary(number, mass, min_reward=0.8)
  with pytest.raises(InputError, match="not both 0"):
    exact.qempo_coherent_binary(0.0, 0.0, min_reward=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_any_nu_is_the_multiplier_of_the_budget_that_it_spends(x64, seed):
  """The dual of both constraints, minimised by SciPy at the budget of the solution, returns its two multipliers."""
  rng = np.random.default_rng(seed)
  _, ref = _problem(seed)
  rewards, floor, threshold, nu = rng.random(40), 0.85, 0.6, (0.4, 1.0, 2.5)[seed]
  best = exact.solve_qempo_coherent(rewards, ref, min_reward=floor, threshold=threshold, nu=nu)
  spent = exact.coherence(best.log_probs, rewards, ref, threshold=threshold)
  cost = np.where(rewards < threshold, -ref, 0)
  np.testing.assert_allclose(spent, np.exp(best.log_probs) @ cost, rtol=1e-9)
  dual = lambda m: scipy.special.logsumexp(m[0] * rewards - m[1] * cost) - m[0] * floor + m[1] * spent
  found = scipy.optimize.minimize(dual, [1.0, 1.0], bounds=[(0, None)] * 2, tol=1e-14)
  np.testing.assert_allclose(found.x, [best.quality_multiplier, nu], rtol=1e-3)
  slack = exact.solve_qempo(rewards, min_reward=floor)
  assert spent < exact.coherence(slack.log_probs, rewards, ref, threshold=threshold)


def test_regression_to_the_target_climbs_down_kl_and_needs_no_weights_off_policy(x64):
  policy = EnumerablePolicy.table(vocab_size=3, max_length=3)
  params, other = (policy.init(jax.random.key(seed)) for seed in (0, 1))
  rewards, ref = _problem(1, size=policy.space.num_sequences, good=5)
  best = exact.solve_qempo_coherent(rewards, ref, min_reward=0.9, threshold=1.0)

  def loss(params, sampler):  # the expectation over one logged response
    each = jax.vmap(lambda x, t: losses.target_regression_loss(x[None], t[None]))
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(policy.log_probs(sampler))) * each(policy.log_probs(params), target))

  target = best.log_probs
  want = jax.grad(policy.kl)(params, target)
  np.testing.assert_allclose(jax.grad(loss)(params, params), want, rtol=1e-9, atol=1e-12)
  at_target = policy.space.table_logits(target)
  np.testing.assert_allclose(jax.grad(loss)(at_target, other), 0, atol=1e-12)
  masked = losses.target_regression_loss(jnp.array([1.0, 9.0]), jnp.zeros(2), jnp.array([True, False]))
  assert masked == 0.5 and losses.target_regression_loss(jnp.ones(2), jnp.zeros(2), jnp.zeros(2, bool)) == 0


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
