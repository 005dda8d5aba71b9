"""Exact optima against closed forms, an independent solution by SciPy, and their own symmetries."""

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy import special

from qempo_jax import exact
from qempo_jax import family
from qempo_jax.errors import InputError

Y = 5
quick = hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
seeds = strategies.integers(0, 2**31)


def problem(seed, size=Y, spread=1.5):
  """Rewards, reference log-probs and a floor above the reference's reward, all float64."""
  rng = np.random.default_rng(seed)
  rewards = rng.normal(size=size)
  ref = special.log_softmax(spread * rng.normal(size=size))
  low = np.exp(ref) @ rewards
  return rewards, ref, low + rng.uniform(0.1, 0.9) * (rewards.max() - low)


def kl(log_probs, ref):
  return np.exp(log_probs) @ (np.asarray(log_probs) - ref)


# Closed forms.


@pytest.mark.parametrize("floor, expected", [(0.9, 0.9), (0.5, 0.5), (0.1, 0.4)])
def test_qempo_with_a_binary_reward(x64, floor, expected):
  good = np.arange(Y) < 2
  solution = exact.solve_qempo(good.astype(float), min_reward=floor)
  np.testing.assert_allclose(np.exp(solution.log_probs), np.where(good, expected / 2, (1 - expected) / 3), atol=1e-13)
  np.testing.assert_allclose(solution.expected_reward, expected, atol=1e-13)
  np.testing.assert_allclose(solution.entropy, -np.exp(solution.log_probs) @ solution.log_probs, atol=1e-13)
  assert solution.kl_multiplier == 0
  assert (solution.quality_multiplier == 0) == (floor < 0.4)


@pytest.mark.parametrize("position", [0.05, 0.5, 0.95])
def test_qempo_kl_with_a_binary_reward(x64, position):
  good, floor = np.arange(Y) < 2, 0.9
  ref = problem(1)[1]
  solution = exact.solve_qempo_kl(good.astype(float), ref, min_reward=floor, kl_position=position)
  power = solution.kl_multiplier / (1 + solution.kl_multiplier)
  tempered = np.exp(power * ref)
  closed = np.where(good, floor * tempered / tempered[good].sum(), (1 - floor) * tempered / tempered[~good].sum())
  np.testing.assert_allclose(np.exp(solution.log_probs), closed, atol=1e-12)
  ends = exact.feasible_range(good.astype(float), ref, min_reward=floor)
  np.testing.assert_allclose(solution.kl, (1 - position) * ends.min_kl + position * ends.qempo_kl, atol=1e-12)


@quick
@hypothesis.given(seed=seeds, position=strategies.floats(0.01, 0.99))
def test_qempo_kl_is_spl_at_the_translated_weights(seed, position):
  with jax.enable_x64(True):
    rewards, ref, floor = problem(seed)
    solution = exact.solve_qempo_kl(rewards, ref, min_reward=floor, kl_position=position)
    hypothesis.assume(solution.quality_multiplier > 1e-6)
    weights = family.weights_from_multipliers(solution.quality_multiplier, solution.kl_multiplier)
    spl = exact.solve_spl(rewards, ref, alpha=weights.alpha, beta=weights.beta)
    np.testing.assert_allclose(np.exp(spl.log_probs), np.exp(solution.log_probs), atol=1e-12)
    np.testing.assert_allclose(spl.quality_multiplier, solution.quality_multiplier, rtol=1e-8)
    np.testing.assert_allclose(spl.kl_multiplier, solution.kl_multiplier, rtol=1e-8)


def test_rlhf_is_the_reference_tilted(x64):
  rewards, ref, floor = problem(2)
  solution = exact.solve_rlhf(rewards, ref, min_reward=floor)
  closed = special.log_softmax(ref + solution.quality_multiplier * rewards)
  np.testing.assert_allclose(solution.log_probs, closed, atol=1e-12)
  np.testing.assert_allclose(solution.expected_reward, floor, atol=1e-12)
  np.testing.assert_allclose(solution.kl, kl(closed, ref), atol=1e-12)
  slack = exact.solve_rlhf(rewards, ref, min_reward=-10.0)
  np.testing.assert_allclose(slack.log_probs, ref, atol=1e-12)
  assert slack.quality_multiplier == 0


# The traps.


@quick
@hypothesis.given(seed=seeds, position=strategies.floats(0.02, 0.98))
def test_entropies_nest_at_matched_reward(seed, position):
  with jax.enable_x64(True):
    rewards, ref, floor = problem(seed)
    qempo = exact.solve_qempo(rewards, min_reward=floor, ref_log_probs=ref)
    hypothesis.assume(qempo.quality_multiplier > 0)
    between = exact.solve_qempo_kl(rewards, ref, min_reward=floor, kl_position=position)
    rlhf = exact.solve_rlhf(rewards, ref, min_reward=floor)
    for solution in (qempo, between, rlhf):
      np.testing.assert_allclose(solution.expected_reward, floor, atol=1e-10)
    assert qempo.entropy > between.entropy > rlhf.entropy
    assert qempo.kl > between.kl > rlhf.kl


def test_at_its_smallest_budget_qempo_kl_is_rlhf(x64):
  rewards, ref, floor = problem(3)
  rlhf = exact.solve_rlhf(rewards, ref, min_reward=floor)
  limit = exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=rlhf.kl)
  np.testing.assert_allclose(limit.log_probs, rlhf.log_probs, atol=1e-6)
  assert limit.kl_multiplier > 1e6 and limit.quality_multiplier > 1e6
  near = [exact.solve_qempo_kl(rewards, ref, min_reward=floor, kl_position=10.0**-k) for k in (4, 6, 8)]
  distance = [np.abs(solution.log_probs - rlhf.log_probs).max() for solution in near]
  np.testing.assert_allclose(np.array(distance[:-1]) / distance[1:], 10, rtol=0.1)
  growth = np.array([solution.kl_multiplier for solution in near])
  np.testing.assert_allclose(growth[1:] / growth[:-1], 10, rtol=0.1)  # like slack^(-1/2)
  assert all(np.isfinite(leaf).all() for solution in near for leaf in solution)


def test_slack_is_spent_on_the_bad_strings(x64):
  bad = 10**4
  rewards = (np.arange(50 + bad) < 50).astype(float)
  solution = exact.solve_qempo(rewards, min_reward=0.9)
  assert round(float(solution.entropy), 2) == 4.77 > np.log(50)


# Independent solutions.


@pytest.mark.parametrize("seed", range(6))
def test_against_scipy_on_the_dual(x64, seed):
  rewards, ref, floor = problem(seed)
  ends = exact.feasible_range(rewards, ref, min_reward=floor)
  budget = float(ends.kl_budget_at(np.random.default_rng(seed).uniform(0.05, 0.95)))

  def log_policy(x):
    return special.log_softmax((x[0] * rewards + x[1] * ref) / (1 + x[1]))

  def dual(x):
    return (1 + x[1]) * special.logsumexp((x[0] * rewards + x[1] * ref) / (1 + x[1])) - x[0] * floor + x[1] * budget

  def gradient(x):
    log_probs = log_policy(x)
    return np.array([np.exp(log_probs) @ rewards - floor, budget - kl(log_probs, ref)])

  np.testing.assert_allclose(optimize.approx_fprime([2.0, 1.0], dual), gradient([2.0, 1.0]), atol=1e-5)
  start = optimize.minimize(dual, [1.0, 1.0], jac=gradient, bounds=[(0, None)] * 2, method="L-BFGS-B").x
  root = optimize.root(gradient, start, tol=1e-13).x
  assert (root > 0).all() and np.abs(gradient(root)).max() < 1e-11
  solution = exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=budget)
  np.testing.assert_allclose(solution.log_probs, log_policy(root), atol=1e-8)
  np.testing.assert_allclose([solution.quality_multiplier, solution.kl_multiplier], root, rtol=1e-8)
  np.testing.assert_allclose(solution.entropy, dual(root), atol=1e-8)  # strong duality


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("program", ["rlhf", "qempo", "qempo_kl"])
def test_against_scipy_on_the_primal(x64, seed, program):
  rewards, ref, floor = problem(seed)
  budget = float(exact.feasible_range(rewards, ref, min_reward=floor).kl_budget_at(0.4))
  solution = {
    "rlhf": lambda: exact.solve_rlhf(rewards, ref, min_reward=floor),
    "qempo": lambda: exact.solve_qempo(rewards, min_reward=floor),
    "qempo_kl": lambda: exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=budget),
  }[program]()
  negative_entropy = lambda p: p @ np.log(p)
  divergence = lambda p: p @ (np.log(p) - ref)
  objective = divergence if program == "rlhf" else negative_entropy
  constraints = [
    {"type": "eq", "fun": lambda p: p.sum() - 1},
    {"type": "ineq", "fun": lambda p: p @ rewards - floor},
  ]
  if program == "qempo_kl":
    constraints.append({"type": "ineq", "fun": lambda p: budget - divergence(p)})
  primal = optimize.minimize(
    objective,
    np.full(Y, 1 / Y),
    jac=lambda p: np.log(p) + 1 - (ref if program == "rlhf" else 0),
    bounds=[(1e-12, 1)] * Y,
    constraints=constraints,
    method="SLSQP",
    options={"ftol": 1e-13, "maxiter": 500},
  )
  np.testing.assert_allclose(primal.fun, solution.kl if program == "rlhf" else -solution.entropy, atol=1e-8)
  np.testing.assert_allclose(primal.x, np.exp(solution.log_probs), atol=1e-5)


# Cases of the multipliers.


def test_a_slack_budget_costs_nothing(x64):
  rewards, ref, floor = problem(5)
  qempo = exact.solve_qempo(rewards, min_reward=floor, ref_log_probs=ref)
  for budget in (float(qempo.kl), float(qempo.kl) + 1):
    solution = exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=budget)
    assert solution.kl_multiplier == 0
    np.testing.assert_allclose(solution.quality_multiplier, qempo.quality_multiplier, rtol=1e-12)
    np.testing.assert_allclose(solution.log_probs, qempo.log_probs, atol=1e-12)


def test_a_slack_floor_costs_nothing(x64):
  rewards, ref, _ = problem(6)
  solution = exact.solve_qempo_kl(rewards, ref, min_reward=rewards.min(), max_kl=0.05)
  assert solution.quality_multiplier == 0 < solution.kl_multiplier
  power = solution.kl_multiplier / (1 + solution.kl_multiplier)
  np.testing.assert_allclose(solution.log_probs, special.log_softmax(power * ref), atol=1e-12)
  np.testing.assert_allclose(solution.kl, 0.05, atol=1e-12)


def test_with_a_uniform_reference_all_three_programs_agree(x64):
  rewards, _, floor = problem(7)
  ref = np.full(Y, -np.log(Y))
  rlhf = exact.solve_rlhf(rewards, ref, min_reward=floor)
  solution = exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=rlhf.kl)
  np.testing.assert_allclose(solution.log_probs, rlhf.log_probs, atol=1e-12)
  assert solution.kl_multiplier == 0 and np.isfinite(solution.quality_multiplier)


def test_at_the_highest_reward_only_the_best_responses_remain(x64):
  rewards, ref = np.array([2.0, 1.0, 2.0, 0.0, 0.5]), np.log([0.1, 0.4, 0.3, 0.1, 0.1])
  best = rewards == 2
  qempo = exact.solve_qempo(rewards, min_reward=2.0)
  np.testing.assert_allclose(np.exp(qempo.log_probs), best / 2, atol=1e-15)
  rlhf = exact.solve_rlhf(rewards, ref, min_reward=2.0)
  np.testing.assert_allclose(np.exp(rlhf.log_probs), [0.25, 0, 0.75, 0, 0], atol=1e-15)
  between = exact.solve_qempo_kl(rewards, ref, min_reward=2.0, kl_position=0.5)
  power = between.kl_multiplier / (1 + between.kl_multiplier)
  np.testing.assert_allclose(np.exp(between.log_probs)[best], special.softmax(power * ref[best]), atol=1e-12)
  assert qempo.quality_multiplier == rlhf.quality_multiplier == between.quality_multiplier == np.inf
  for solution in (qempo, rlhf, between):
    assert not any(np.isnan(leaf).any() for leaf in solution)


def test_equal_rewards(x64):
  ref = problem(8)[1]
  solution = exact.solve_qempo_kl(np.ones(Y), ref, min_reward=1.0, kl_position=0.5)
  assert solution.quality_multiplier == 0 and 0 < solution.kl_multiplier < np.inf
  np.testing.assert_allclose(solution.expected_reward, 1, atol=1e-12)


def test_responses_outside_the_set_are_as_if_absent(x64):
  rewards, ref, floor = problem(9)
  padded = np.append(rewards, [99.0, np.nan]), np.append(ref, [-np.inf, -np.inf])
  for solve in (
    lambda r, q: exact.solve_qempo_kl(r, q, min_reward=floor, kl_position=0.3),
    lambda r, q: exact.solve_spl(r, q, alpha=0.5, beta=0.2),
  ):
    bare, within = solve(rewards, ref), solve(*padded)
    np.testing.assert_allclose(within.log_probs[:Y], bare.log_probs, atol=1e-12)
    assert (within.log_probs[Y:] == -np.inf).all()
    for one, other in zip(bare[1:], within[1:], strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-10)


# Batches.


def batch(prompts, size):
  rows = [problem(seed, size) for seed in range(prompts)]
  return (
    np.stack([row[0] for row in rows]),
    np.stack([row[1] for row in rows]),
    np.array([row[2] for row in rows]),
  )


def test_one_pair_a_prompt_is_the_prompts_one_by_one(x64):
  rewards, ref, floors = batch(3, Y)
  ends = exact.feasible_range(rewards, ref, min_reward=floors, per_prompt=True)
  budgets = ends.kl_budget_at(0.3)
  assert budgets.shape == (3,)
  together = exact.solve_qempo_kl(rewards, ref, min_reward=floors, max_kl=budgets, per_prompt=True)
  for i in range(3):
    alone = exact.solve_qempo_kl(rewards[i], ref[i], min_reward=floors[i], max_kl=budgets[i])
    for one, many in zip(alone, together, strict=True):
      np.testing.assert_allclose(many[i], one, rtol=1e-9, atol=1e-11)


def test_one_global_pair_meets_the_constraints_in_expectation(x64):
  rewards, ref, floors = batch(3, Y)
  floor = floors.mean()
  ends = exact.feasible_range(rewards, ref, min_reward=floor)
  budget = float(ends.kl_budget_at(0.3))
  shared = exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=budget)
  assert shared.log_probs.shape == (3, Y) and shared.entropy.shape == (3,) and shared.quality_multiplier.shape == ()
  np.testing.assert_allclose([shared.expected_reward.mean(), shared.kl.mean()], [floor, budget], atol=1e-11)
  target = family.multiplier_target_log_probs(rewards, ref, quality=shared.quality_multiplier, kl=shared.kl_multiplier)
  np.testing.assert_allclose(shared.log_probs, target, atol=1e-10)
  # Any policies that meet the constraints prompt by prompt meet the global ones at their means: less entropy.
  per_prompt = exact.solve_qempo_kl(rewards, ref, min_reward=floors, kl_position=0.3, per_prompt=True)
  looser = exact.solve_qempo_kl(rewards, ref, min_reward=floor, max_kl=per_prompt.kl.mean())
  assert looser.entropy.mean() > per_prompt.entropy.mean() + 1e-3


def test_a_batch_of_copies_is_one_prompt(x64):
  rewards, ref, floor = problem(11)
  one = exact.solve_qempo_kl(rewards, ref, min_reward=floor, kl_position=0.5)
  copies = exact.solve_qempo_kl(np.tile(rewards, (3, 1)), np.tile(ref, (3, 1)), min_reward=floor, kl_position=0.5)
  np.testing.assert_allclose(copies.log_probs, np.tile(one.log_probs, (3, 1)), atol=1e-11)
  np.testing.assert_allclose(copies.kl_multiplier, one.kl_multiplier, rtol=1e-9)


# Symmetries.


@quick
@hypothesis.given(seed=seeds, shift=strategies.floats(-5, 5), scale=strategies.floats(0.01, 100))
def test_symmetries(seed, shift, scale):
  with jax.enable_x64(True):
    rewards, ref, floor = problem(seed)
    solve = lambda r, q, floor: exact.solve_qempo_kl(r, q, min_reward=floor, kl_position=0.5)
    plain = solve(rewards, ref, floor)
    moved = solve(scale * rewards + shift, ref, scale * floor + shift)
    np.testing.assert_allclose(np.exp(moved.log_probs), np.exp(plain.log_probs), atol=1e-8)
    np.testing.assert_allclose(moved.quality_multiplier * scale, plain.quality_multiplier, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moved.kl_multiplier, plain.kl_multiplier, rtol=1e-6, atol=1e-9)
    order = np.array([3, 1, 4, 0, 2])
    permuted = solve(rewards[order], ref[order], floor)
    np.testing.assert_allclose(np.exp(permuted.log_probs), np.exp(plain.log_probs)[order], atol=1e-10)


# Precision, size and transformations.


@pytest.mark.parametrize("seed", range(2))
def test_single_precision_finds_the_multipliers_of_a_large_set(seed):
  """Floor and budget are those of the closed form at known multipliers, in float64."""
  rewards, ref, _ = problem(seed, size=3000)
  quality, kl_multiplier = 2.0, 0.7
  log_probs = special.log_softmax((quality * rewards + kl_multiplier * ref) / (1 + kl_multiplier))
  floor, budget = np.exp(log_probs) @ rewards, kl(log_probs, ref)
  found = exact.solve_qempo_kl(rewards.astype(np.float32), ref.astype(np.float32), min_reward=floor, max_kl=budget)
  assert found.log_probs.dtype == jnp.float32
  entropy = -np.exp(log_probs) @ log_probs
  for one, other in zip(found, (log_probs, quality, kl_multiplier, entropy, floor, budget), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3)
  np.testing.assert_allclose(found.expected_reward, floor, rtol=1e-5)


def test_dual_core_under_jit_vmap_and_grad(x64):
  rewards, ref, floors = batch(3, Y)
  ends = exact.feasible_range(rewards, ref, min_reward=floors, per_prompt=True)
  budgets = ends.kl_budget_at(0.3)
  mapped = jax.jit(jax.vmap(exact.qempo_kl_dual))(rewards, ref, floors, budgets)
  checked = exact.solve_qempo_kl(rewards, ref, min_reward=floors, max_kl=budgets, per_prompt=True)
  np.testing.assert_allclose(mapped.quality, checked.quality_multiplier, rtol=1e-9)
  np.testing.assert_allclose(mapped.kl, checked.kl_multiplier, rtol=1e-9)

  def optimum(bounds):
    return exact.solve_qempo_kl(rewards[0], ref[0], min_reward=bounds[0], max_kl=bounds[1]).entropy

  # The envelope theorem: the optimal entropy's derivatives are the multipliers.
  envelope = jax.jit(jax.grad(optimum))(jnp.array([floors[0], budgets[0]]))
  np.testing.assert_allclose(envelope, [-mapped.quality[0], mapped.kl[0]], rtol=1e-7)


def test_multipliers_have_exact_derivatives(x64):
  """Along random directions of rewards and reference, against finite differences."""
  rewards, ref, floor = problem(4)
  budget = float(exact.feasible_range(rewards, ref, min_reward=floor).kl_budget_at(0.5))
  rng = np.random.default_rng(0)

  @jax.jit
  def of(x, weights):
    found = lambda x: jnp.stack(exact.qempo_kl_dual(x[0], jax.nn.log_softmax(x[1]), floor, budget)) @ weights
    return jax.value_and_grad(found)(x)

  at = np.stack([rewards, ref])
  for weights in np.eye(2):
    for direction in rng.normal(size=(3, 2, Y)):
      ends = [of(at + step * direction, weights)[0] for step in (1e-6, -1e-6)]
      slope = np.sum(direction * of(at, weights)[1])
      np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


def test_dual_core_gives_limits_where_nothing_is_feasible():
  rewards, ref = jnp.array([1.0, 0.5, 0.0]), jnp.log(jnp.array([0.05, 0.25, 0.70]))
  below = exact.qempo_kl_dual(rewards, ref, 0.6, 0.1)
  assert below.quality == below.kl == jnp.inf
  above = exact.qempo_kl_dual(rewards, ref, 1.5, 9.0)
  assert above.quality > 50 and not np.isnan(above.kl)


# Feasibility and its messages.


def test_feasible_range(x64):
  rewards, ref = np.array([1, 0.5, 0]), np.log([0.05, 0.25, 0.70])
  ends = exact.feasible_range(rewards, ref, min_reward=0.6)
  np.testing.assert_allclose([ends.lowest_reward, ends.reference_reward, ends.highest_reward], [0, 0.175, 1])
  np.testing.assert_allclose(ends.min_kl, exact.solve_rlhf(rewards, ref, min_reward=0.6).kl)
  np.testing.assert_allclose(ends.qempo_kl, exact.solve_qempo(rewards, min_reward=0.6, ref_log_probs=ref).kl)
  free = exact.feasible_range(rewards, ref)
  np.testing.assert_allclose([free.min_kl, free.qempo_kl], [0, -np.log(3) - ref.mean()], atol=1e-12)
  np.testing.assert_allclose(free.kl_budget_at(0.25), 0.25 * free.qempo_kl, atol=1e-12)


TWO = np.array([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
REF = np.log([[0.05, 0.25, 0.70], [0.05, 0.25, 0.70]])


@pytest.mark.parametrize(
  "solve, words",
  [
    (
      lambda: exact.solve_qempo(TWO[0], min_reward=1.1),
      r"min_reward 1.1 is out of reach: .*\[0, 1\].*at most 1$",
    ),
    (lambda: exact.solve_rlhf(TWO[0], REF[0], min_reward=2.0), r"\[0, 1\]"),
    (lambda: exact.solve_qempo(TWO[0], min_reward=np.nan), "out of reach"),
    (lambda: exact.feasible_range(TWO[0], REF[0], min_reward=1.1), r"\[0, 1\]"),
    (
      lambda: exact.solve_qempo(TWO, min_reward=np.array([0.5, 1.1]), per_prompt=True),
      r"1.1 is out of reach for prompt 1: .*\[0, 1\]",
    ),
    (
      lambda: exact.solve_qempo_kl(TWO[0], REF[0], min_reward=0.6, max_kl=0.1),
      r"max_kl 0.1 is below 0.768859 nats.*reward 0.6 or more; .*between 0.768859 \(RLHF\) and 0.778011 \(QEMPO",
    ),
    (
      lambda: exact.solve_qempo_kl(TWO, REF, min_reward=0.6, max_kl=np.array([0.77, 0.1]), per_prompt=True),
      r"max_kl 0.1 .*for prompt 1;",
    ),
    (lambda: exact.solve_qempo_kl(TWO[0], REF[0], min_reward=0.6, max_kl=np.nan), "max_kl nan"),
  ],
)
def test_infeasible_programs_state_the_feasible_range(solve, words):
  with pytest.raises(exact.InfeasibleError, match=words) as raised:
    solve()
  assert isinstance(raised.value, InputError) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "solve, words",
  [
    (
      lambda: exact.solve_rlhf(TWO[0], REF[0, :2], min_reward=0.5),
      r"rewards \(3,\) and ref_log_probs \(2,\) must have one shape",
    ),
    (
      lambda: exact.solve_rlhf(TWO[0], REF[0] + 0.1, min_reward=0.6),
      "must be normalised, but sum to 1.10517",
    ),
    (lambda: exact.solve_rlhf(TWO[0] * np.nan, REF[0], min_reward=0.6), "rewards must be finite"),
    (lambda: exact.solve_qempo_kl(TWO[0], REF[0], min_reward=0.6), "either max_kl"),
    (
      lambda: exact.solve_qempo_kl(TWO[0], REF[0], min_reward=0.6, max_kl=1.0, kl_position=0.5),
      "either max_kl",
    ),
    (
      lambda: exact.solve_qempo_kl(TWO[0], REF[0], min_reward=0.6, kl_position=1.5),
      "kl_position is 1.5",
    ),
  ],
)
def test_bad_inputs_are_explained(solve, words):
  with pytest.raises(InputError, match=words):
    solve()


# The decomposition of the distance to the ideal policy.


@quick
@hypothesis.given(seed=seeds, tolerance=strategies.floats(0.01, 0.99), good=strategies.integers(1, Y - 1))
def test_alignment_decomposition(seed, tolerance, good):
  with jax.enable_x64(True):
    log_probs, acceptable = problem(seed)[1], np.arange(Y) < good
    ideal = np.where(acceptable, (1 - tolerance) / good, tolerance / (Y - good))
    parts = exact.alignment_decomposition(log_probs, acceptable, tolerance=tolerance)
    np.testing.assert_allclose(parts.kl, kl(log_probs, np.log(ideal)), atol=1e-12)
    np.testing.assert_allclose(parts.diversity_term, np.exp(log_probs) @ log_probs, atol=1e-12)
    np.testing.assert_allclose(parts.diversity_term + parts.quality_term, parts.kl, atol=1e-12)
    intercept = -np.log(tolerance / (Y - good))
    np.testing.assert_allclose(parts.quality_term, intercept + parts.quality_slope * parts.quality, atol=1e-12)
    np.testing.assert_allclose(parts.quality, np.exp(log_probs)[acceptable].sum(), atol=1e-12)
    assert parts.quality_helps == (tolerance < (Y - good) / Y)


def test_the_ideal_policy_is_at_distance_zero(x64):
  ideal = np.log([0.45, 0.45, 0.05, 0.05])
  assert abs(exact.alignment_decomposition(ideal, [True, True, False, False], tolerance=0.1).kl) < 1e-15
