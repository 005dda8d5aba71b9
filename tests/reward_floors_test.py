"""Several rewards with floors: the multipliers of an enumerable policy against an independent solution of the dual."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from qempo_jax import advantages
from qempo_jax import duals
from qempo_jax import reward_floors
from qempo_jax.testing.enumerable import EnumerablePolicy

POLICY = EnumerablePolicy.table(vocab_size=3, max_length=3)


def two_rewards(seed=0) -> np.ndarray:
  """[N, 2]: rewards of every sequence that pull against each other."""
  rng = np.random.default_rng(seed)
  first = rng.uniform(size=len(POLICY.space.lengths))
  return np.stack([first, 0.6 * (1 - first) + 0.4 * rng.uniform(size=len(first))], axis=1)


def solve(rewards: np.ndarray, floors) -> tuple[np.ndarray, np.ndarray]:
  """Multipliers and optimal distribution of max H s.t. E r_i >= R_i: the minimum of log sum exp(r m) - m R."""
  floors = np.asarray(floors)

  def dual(multipliers):
    logits = rewards @ multipliers
    top = logits.max()
    weights = np.exp(logits - top)
    return np.log(weights.sum()) + top - multipliers @ floors, rewards.T @ weights / weights.sum() - floors

  found = scipy.optimize.minimize(
    dual, np.ones(len(floors)), jac=True, bounds=[(0, None)] * len(floors), tol=1e-12
  )
  weights = np.exp(rewards @ found.x - (rewards @ found.x).max())
  return found.x, weights / weights.sum()


def reachable(rewards: np.ndarray) -> list[float]:
  """Floors that both bind: the means of a policy tilted toward both rewards."""
  weights = np.exp(rewards @ np.array([4.0, 7.0]))
  return list(rewards.T @ weights / weights.sum())


@functools.partial(jax.jit, static_argnames="steps")
def train(rewards, floors, *, steps=1500):
  """Policy and multipliers move together, by the exact gradient of the combined reward's Lagrangian."""
  names = ("quality", "safety")
  targets = dict(zip(names, floors))
  dual_params = duals.init_dual_params({name: 1.0 for name in names})
  controller = duals.pi_controller(proportional_gain=10.0, integral_gain=1.0)
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps, 1e-3))
  params = jnp.zeros_like(POLICY.init(jax.random.key(0)))
  group = jnp.ones(len(rewards), bool)

  def step(carry, _):
    params, opt_state, dual_params, dual_state = carry
    m = duals.multipliers(dual_params)
    combined = reward_floors.combine(
      rewards[:, 0], rewards[:, 1:], group,
      quality_multiplier=m["quality"], floor_multipliers=jnp.stack([m["safety"]]),
    )  # fmt: skip
    log_probs = POLICY.log_probs(params)
    shaped = advantages.lagrangian_rewards(
      combined.rewards, log_probs, jnp.zeros_like(log_probs),
      quality_multiplier=combined.multiplier, kl_multiplier=0.0, entropy_weight=1.0,
    )  # fmt: skip
    gradient = jax.grad(lambda p: -POLICY.expected(p, shaped))(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    means = POLICY.expected(params, rewards)
    measured = {"quality": duals.at_least(means[0], targets["quality"])}
    measured |= reward_floors.constraints(means[1:], {"safety": targets["safety"]})
    dual_gradient = jax.grad(lambda d: duals.lagrangian_terms(d, measured).dual_loss)(dual_params)
    dual_updates, dual_state = controller.update(dual_gradient, dual_state, dual_params)
    dual_params = optax.apply_updates(dual_params, dual_updates)
    return (optax.apply_updates(params, updates), opt_state, dual_params, dual_state), None

  start = params, optimizer.init(params), dual_params, controller.init(dual_params)
  (params, _, dual_params, _), _ = jax.lax.scan(step, start, None, steps)
  found = duals.multipliers(dual_params)
  return params, jnp.stack([found[name] for name in names])


@pytest.mark.parametrize("seed", [0, 1])
def test_both_floors_hold_and_the_multipliers_are_the_kkt_ones(seed):
  rewards = two_rewards(seed)
  floors = reachable(rewards)
  wanted, distribution = solve(rewards, floors)
  np.testing.assert_allclose(wanted, [4.0, 7.0], rtol=1e-3)  # by construction
  params, multipliers = train(rewards, floors)
  means = np.asarray(POLICY.expected(params, jnp.asarray(rewards)))
  assert (np.abs(means - floors) < 0.01).all(), (means, floors)
  np.testing.assert_allclose(multipliers, wanted, rtol=0.01)
  np.testing.assert_allclose(np.exp(POLICY.log_probs(params)), distribution, atol=0.01)


def test_a_floor_that_does_not_bind_gets_multiplier_zero_and_still_holds():
  rewards = two_rewards(0)
  weights = np.exp(4.0 * rewards[:, 0])
  alone = rewards.T @ weights / weights.sum()
  floors = [alone[0], alone[1] - 0.1]
  wanted, _ = solve(rewards, floors)
  np.testing.assert_allclose(wanted, [4.0, 0.0], atol=1e-3)
  params, multipliers = train(rewards, floors)
  means = np.asarray(POLICY.expected(params, jnp.asarray(rewards)))
  assert means[0] > floors[0] - 0.01 and means[1] > floors[1]
  np.testing.assert_allclose(multipliers, wanted, atol=0.1)


def test_combined_by_hand():
  combined = reward_floors.combine(
    jnp.array([1.0, 0.0]), jnp.array([[10.0], [30.0]]), jnp.ones(2, bool),
    quality_multiplier=3.0, floor_multipliers=jnp.array([1.0]),
  )  # fmt: skip
  np.testing.assert_allclose(combined.multiplier, 4.0)
  np.testing.assert_allclose(combined.rewards, [13 / 4, 30 / 4])


def test_without_floors_it_is_the_one_reward():
  rewards = jnp.array([0.5, -1.0, 2.0])
  combined = reward_floors.combine(
    rewards, jnp.zeros((3, 0)), jnp.ones(3, bool), quality_multiplier=2.5, floor_multipliers=jnp.zeros(0)
  )
  np.testing.assert_allclose(combined.rewards, rewards, rtol=1e-6)
  np.testing.assert_allclose(combined.multiplier, 2.5)


def test_without_any_multiplier_nothing_is_undefined():
  combine = lambda r: reward_floors.combine(
    r, jnp.ones((2, 1)), jnp.ones(2, bool), quality_multiplier=0.0, floor_multipliers=jnp.zeros(1)
  )
  combined = jax.jit(combine)(jnp.array([1.0, 2.0]))
  assert np.isfinite(combined.rewards).all() and combined.multiplier == 0


def test_what_was_not_scored_gets_no_credit_and_does_not_count():
  rewards = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan], [0.5, jnp.nan], [9.0, jnp.nan]])
  mask = jnp.array([True, True, True, False])
  filled = reward_floors.fill_unscored(rewards, mask)
  np.testing.assert_allclose(filled, [[1.0, 0], [0.75, 0], [0.5, 0], [9.0, 0]])
  means = reward_floors.measure(rewards[None], mask[None])
  np.testing.assert_allclose(means, [0.75, np.nan])


def test_a_floor_that_scored_nothing_leaves_its_multiplier_alone_and_the_others_move():
  dual_params = duals.init_dual_params({"a": 1.0, "b": 1.0})
  controller = duals.plain_ascent(0.5)
  measured = reward_floors.constraints(jnp.array([jnp.nan, 0.2]), {"a": 0.5, "b": 0.5})
  gradient = jax.grad(lambda d: duals.lagrangian_terms(d, measured).dual_loss)(dual_params)
  updates, _ = controller.update(gradient, controller.init(dual_params), dual_params)
  moved = duals.multipliers(optax.apply_updates(dual_params, updates))
  np.testing.assert_allclose([moved["a"], moved["b"]], [1.0, 1.15], rtol=1e-6)


def test_shapes_are_checked():
  with pytest.raises(AssertionError):
    reward_floors.combine(
      jnp.ones(3), jnp.ones((3, 2)), jnp.ones(3, bool), quality_multiplier=1.0, floor_multipliers=jnp.ones(1)
    )
  with pytest.raises(AssertionError):
    reward_floors.constraints(jnp.ones(2), {"a": 0.5})


def test_samples_of_the_last_policy_are_weighted():
  rewards = jnp.array([[[1.0, jnp.nan], [3.0, 5.0]], [[jnp.nan, 7.0], [9.0, 9.0]]])
  fresh = jnp.array([[True, True], [True, False]])
  weight = jnp.array([[0.5, 1.5], [2.0, 1.0]])
  means = reward_floors.measure(rewards, fresh, weight)
  np.testing.assert_allclose(means, [(0.5 * 1 + 1.5 * 3) / 2, (1.5 * 5 + 2 * 7) / 3.5], rtol=1e-6)
