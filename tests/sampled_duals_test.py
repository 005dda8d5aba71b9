"""Optima told from samples: against the exact ones on enumerable references, and where they must not be believed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from qempo_jax import dual_newton
from qempo_jax import exact
from qempo_jax import sampled_duals
from qempo_jax import sampled_evidence
from qempo_jax.errors import InputError
from qempo_jax.feasible import InfeasibleError
from qempo_jax.sampled_duals import PathPoint

FIGURES = ("quality_multiplier", "kl_multiplier", "entropy", "kl", "expected_reward")
PROGRAMS = ("rlhf", "qempo", "qempo_kl")


def population(seed, prompts=3, size=12):
  """[P, Y] rewards and reference log-probs, a floor above the reference's reward, and a budget in the middle."""
  rng = np.random.default_rng(seed)
  rewards = rng.normal(size=(prompts, size))
  ref = special.log_softmax(rng.normal(size=(prompts, size)), axis=1)
  low, high = (np.exp(ref) * rewards).sum(1).mean(), rewards.max(axis=1).mean()
  floor = float(low + 0.5 * (high - low))
  with jax.enable_x64(True):
    budget = float(exact.feasible_range(rewards, ref, min_reward=floor).kl_budget_at(0.6))
  return rewards, ref, floor, budget


def exact_figures(program, rewards, ref, floor, budget):
  """The exact solution's global figures, [5]."""
  with jax.enable_x64(True):
    solution = {
      "rlhf": lambda: exact.solve_rlhf(rewards, ref, min_reward=floor),
      "qempo": lambda: exact.solve_qempo(rewards, min_reward=floor, ref_log_probs=ref),
      "qempo_kl": lambda: exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=budget),
    }[program]()
    return figures(solution)


def figures(solution):
  return np.array([float(np.mean(getattr(solution, name))) for name in FIGURES])


def solver(program, floor, budget):
  solve = getattr(sampled_duals, f"solve_{program}")
  bounds = {"min_reward": floor} | ({"max_kl": budget} if program == "qempo_kl" else {})
  return functools.partial(solve, **bounds)


def draw(rng, rewards, ref, samples):
  """Samples of every prompt's reference: [P, n] rewards and log-probs."""
  chosen = np.stack([rng.choice(len(row), size=samples, p=special.softmax(row)) for row in ref])
  return np.take_along_axis(rewards, chosen, 1), np.take_along_axis(ref, chosen, 1)


# Against the exact solutions.


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("seed", range(2))
def test_samples_in_exact_proportion_give_the_exact_solution(x64, program, seed):
  rewards, _, floor, _ = population(seed)
  counts = np.random.default_rng(seed).multinomial(400 - 12, np.ones(12) / 12, size=3) + 1
  ref = np.log(counts / 400)
  budget = float(exact.feasible_range(rewards, ref, min_reward=floor).kl_budget_at(0.4))
  chosen = np.stack([np.repeat(np.arange(12), row) for row in counts])
  sampled = solver(program, floor, budget)(np.take_along_axis(rewards, chosen, 1), np.take_along_axis(ref, chosen, 1))
  np.testing.assert_allclose(
    figures(sampled), exact_figures(program, rewards, ref, floor, budget), rtol=1e-8, atol=1e-10
  )


@pytest.mark.slow  # 90 solutions a program, of up to 25600 samples a prompt
@pytest.mark.parametrize("program", PROGRAMS)
def test_errors_fall_as_one_over_the_root_of_n(x64, program):
  """Root mean square errors over 30 draws at 400, 3200 and 25600 samples a prompt: each about 2.8 times the next."""
  rewards, ref, floor, budget = population(0)
  truth = exact_figures(program, rewards, ref, floor, budget)
  solve = solver(program, floor, budget)
  errors = []
  for samples in (400, 3200, 25600):
    rng = np.random.default_rng(samples)
    found = [figures(solve(*draw(rng, rewards, ref, samples))) for _ in range(30)]
    errors.append(np.sqrt(np.mean((np.array(found) - truth) ** 2, axis=0)))
  errors = np.array(errors)
  print(program, dict(zip(FIGURES, np.round(errors.T, 5).tolist(), strict=True)))
  moving = errors[0] > 1e-6  # the constraints themselves hold on the samples
  assert moving[FIGURES.index("entropy")] and moving[0]
  ratios = errors[:-1, moving] / errors[1:, moving]
  # sqrt(8) = 2.8, but for the noise of 30 draws (18 % of a ratio) and, at 400, terms of higher order.
  assert (ratios > 1.6).all() and (ratios < 5).all()
  assert (errors[-1] < 0.02).all()


@pytest.mark.slow  # 60 bootstraps
def test_intervals_cover_the_exact_solution():
  """Prompts drawn from an enumerated population; 95 % intervals of 15 prompts hold its figures in most of 60 draws."""
  rewards, ref, floor, budget = population(1, prompts=120, size=40)
  truth = exact_figures("qempo_kl", rewards, ref, floor, budget)
  solve = solver("qempo_kl", floor, budget)
  inside = []
  for repetition in range(60):
    rng = np.random.default_rng([3, repetition])
    prompts = rng.integers(len(rewards), size=15)
    samples = draw(rng, rewards[prompts], ref[prompts], 128)
    draws = sampled_evidence.bootstrap(solve, *samples, num_draws=200, seed=repetition)
    values = np.array([getattr(draws, name) for name in FIGURES[:3]])
    low, high = np.quantile(values, [0.025, 0.975], axis=1, method="inverted_cdf")
    inside.append((low <= truth[:3]) & (truth[:3] <= high))
  covered = np.mean(inside, axis=0)
  print("coverage of", FIGURES[:3], covered)
  # Binomial(60, 0.95) is below 52 with probability 1 %, and is 60 with 5 %.
  assert (covered >= 52 / 60).all()


@pytest.mark.slow
def test_the_intervals_narrow_with_more_prompts():
  rewards, ref, floor, budget = population(1, prompts=64, size=40)
  widths = []
  for prompts in (8, 64):
    samples = draw(np.random.default_rng(0), rewards[:prompts], ref[:prompts], 128)
    draws = sampled_evidence.bootstrap(solver("rlhf", 0.5, budget), *samples, num_draws=200, seed=0)
    widths.append(np.ptp(np.quantile(np.asarray(draws.kl), [0.025, 0.975])))
  assert widths[0] > 1.5 * widths[1]


# The weights.


def test_the_weights_are_those_of_the_closed_form(x64):
  rewards, ref, floor, budget = population(4)
  samples = draw(np.random.default_rng(0), rewards, ref, 50)
  solution = sampled_duals.solve_qempo_kl(*samples, min_reward=floor, max_kl=budget)
  quality, kl = float(solution.quality_multiplier), float(solution.kl_multiplier)
  logits = (quality * samples[0] - samples[1]) / (1 + kl)
  weights = special.softmax(logits, axis=1)
  np.testing.assert_allclose(np.exp(solution.log_weights), weights, rtol=1e-9)
  log_z = special.logsumexp(logits, axis=1) - np.log(50)
  log_policy = (quality * samples[0] + kl * samples[1]) / (1 + kl) - log_z[:, None]
  np.testing.assert_allclose(solution.entropy, -(weights * log_policy).sum(1), rtol=1e-9)
  np.testing.assert_allclose(solution.kl, (weights * (log_policy - samples[1])).sum(1), rtol=1e-9)
  np.testing.assert_allclose(solution.effective_sample_size, 1 / (weights**2).sum(1), rtol=1e-9)
  np.testing.assert_allclose([solution.expected_reward.mean(), solution.kl.mean()], [floor, budget], atol=1e-10)
  fixed = sampled_duals.at_weights(*samples, solution.point)
  np.testing.assert_allclose(figures(fixed), figures(solution), rtol=1e-9)


@pytest.mark.parametrize("program", PROGRAMS)
def test_few_effective_samples_are_left_far_from_the_reference(program):
  rewards, ref, floor, budget = population(5)
  samples = draw(np.random.default_rng(0), rewards, ref, 64)
  solution = solver(program, floor, budget)(*samples)
  sizes = np.asarray(solution.effective_sample_size)
  assert ((sizes >= 1) & (sizes <= 64 * np.exp(-np.asarray(solution.kl)) * 1.001)).all()
  assert (np.asarray(solution.kl) <= np.log(64)).all()


def test_effective_sample_sizes_of_known_weights():
  rows = jnp.log(jnp.array([[0.25] * 4, [0.5, 0.5, 1e-20, 1e-20], [1, 1e-20, 1e-20, 1e-20]]))
  sizes = sampled_duals.effective_sample_size(rows)
  np.testing.assert_allclose(sizes, [4, 2, 1], rtol=1e-6)
  overall = 1 / np.sum((np.exp(rows) / 3) ** 2)  # Kish's formula for all weights together
  np.testing.assert_allclose(3 * sampled_evidence.harmonic_mean(sizes), overall, rtol=1e-6)


def test_slack_constraints_have_no_multiplier():
  rewards, ref, floor, _ = population(6)
  samples = draw(np.random.default_rng(0), rewards, ref, 64)
  reference = sampled_duals.solve_rlhf(*samples, min_reward=-100.0)
  assert reference.quality_multiplier == 0
  np.testing.assert_allclose(reference.kl, 0, atol=1e-5)
  np.testing.assert_allclose(reference.effective_sample_size, 64, rtol=1e-4)
  qempo = sampled_duals.solve_qempo(*samples, min_reward=floor)
  loose = sampled_duals.solve_qempo_kl(*samples, min_reward=floor, max_kl=50.0)
  assert loose.kl_multiplier == 0
  np.testing.assert_allclose(loose.quality_multiplier, qempo.quality_multiplier, rtol=1e-5)


def test_what_no_reweighting_reaches_raises_with_the_range():
  rewards, ref, floor, _ = population(7)
  samples = draw(np.random.default_rng(0), rewards, ref, 64)
  best, least = samples[0].max(1).mean(), float(np.mean(sampled_duals.solve_rlhf(*samples, min_reward=floor).kl))
  with pytest.raises(InfeasibleError, match=f"samples {best:.4g}.*at most {best:.4g}"):
    sampled_duals.solve_qempo(*samples, min_reward=best + 0.1)
  with pytest.raises(InfeasibleError, match=f"max_kl 0.01 is below {least:.3g}"):
    sampled_duals.solve_qempo_kl(*samples, min_reward=floor, max_kl=0.01)
  with pytest.raises(InputError, match="must be finite"):
    sampled_duals.solve_rlhf(samples[0], samples[1] * np.inf, min_reward=floor)


@pytest.mark.slow
@pytest.mark.parametrize("program", [pytest.param(p, marks=[pytest.mark.slow] * (p != "qempo_kl")) for p in PROGRAMS])
def test_pure_under_jit_vmap_and_grad(x64, program):
  rewards, ref, floor, budget = population(8)
  samples = draw(np.random.default_rng(0), rewards, ref, 64)
  quality = lambda floor: solver(program, floor, budget)(*samples).quality_multiplier
  direct = [float(quality(f)) for f in (floor, floor + 0.02)]
  np.testing.assert_allclose(jax.jit(jax.vmap(quality))(jnp.array([floor, floor + 0.02])), direct)
  slope = (float(quality(floor + 1e-5)) - float(quality(floor - 1e-5))) / 2e-5
  np.testing.assert_allclose(jax.grad(quality)(floor), slope, rtol=1e-5)


# Samples that mislead.


def test_rare_good_answers_are_seen_in_the_evidence_not_in_the_forecast():
  """One answer in 2000 is good: 200 samples of each prompt mostly show none, or one that stands for it alone."""
  ref = np.log(np.array([[0.0005, *[0.9995 / 400] * 400]] * 8))
  rewards = np.zeros_like(ref)
  rewards[:, 0] = 1
  samples = draw(np.random.default_rng(1), rewards, ref, 200)
  seen = samples[0].max(axis=1)
  assert 0 < seen.mean() < 0.5
  floor = 0.9 * float(seen.mean())  # what these samples reach, at best
  solution = sampled_duals.solve_rlhf(*samples, min_reward=floor)
  truth = exact_figures("rlhf", rewards, ref, floor, None)
  assert abs(figures(solution)[0] - truth[0]) > 1  # the multiplier is wrong by more than a nat,
  sizes = np.asarray(solution.effective_sample_size)
  np.testing.assert_allclose(sizes[seen == 0], 200, rtol=1e-4)  # where nothing was seen the weights look perfect,
  hidden = np.asarray(sampled_evidence.hidden_share(samples[0], solution))
  assert (hidden[seen == 0] > 0.5).all()  # and the hidden share shows it;
  assert (sizes[seen == 1] < 3).all()  # where one was seen, the effective size does.


def test_hidden_share_of_k_best_samples():
  rewards = np.zeros((3, 100))
  rewards[0, :12], rewards[1, :1] = 1, 1
  solution = sampled_duals.at_weights(rewards, np.full((3, 100), -4.0), PathPoint(50.0, 0.0))
  hidden = sampled_evidence.hidden_share(rewards, solution)
  np.testing.assert_allclose(hidden, [3 / 15, 3 / 4, 1], rtol=1e-5)
  flat = sampled_duals.at_weights(rewards, np.full((3, 100), -4.0), PathPoint(0.0, 0.0))
  np.testing.assert_allclose(sampled_evidence.hidden_share(rewards, flat), 3 / 103, rtol=1e-5)


def test_best_of_k_is_the_mean_over_all_groups_of_k(x64):
  rewards = np.random.default_rng(0).normal(size=(2, 9))
  rewards[1] = rewards[1] > 0.3  # ties
  for size in range(1, 10):
    groups = [np.max(list(itertools.combinations(row, size)), axis=1).mean() for row in rewards]
    np.testing.assert_allclose(sampled_evidence.expected_best_of(rewards, size), groups, rtol=1e-12)
  with pytest.raises(InputError, match="best of 10 can't be estimated from 9"):
    sampled_evidence.expected_best_of(rewards, 10)


def test_best_of_k_is_unbiased_and_keeps_its_kl_bound(x64):
  rewards, ref, _, _ = population(9, prompts=1)
  probs, order = special.softmax(ref[0]), np.argsort(rewards[0])
  below = np.cumsum(probs[order])
  policy = np.diff(below**4, prepend=0)  # of the best of 4
  truth = policy @ rewards[0][order]
  found = draw(np.random.default_rng(0), rewards, ref, 40_000)[0].reshape(-1, 8)
  estimates = sampled_evidence.expected_best_of(found, 4)
  assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(len(found))
  assert policy @ np.log(policy / probs[order]) <= np.log(4) - 3 / 4


def test_the_path_is_that_of_the_exact_solver_seen_from_the_reference(x64):
  rewards, ref, _, _ = population(10)
  point = PathPoint(jnp.asarray(1.3), jnp.asarray(0.4))
  ratio = dual_newton.path_log_probs(rewards, ref, point) - ref
  weights = sampled_duals.log_weights(rewards, ref, point)
  difference = np.asarray(weights - ratio)
  np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-12)
