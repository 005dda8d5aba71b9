"""Multipliers: the two halves of the Lagrangian, their storage, and the controllers."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.studies import dual_controllers as study
from qempo_jax import duals
from qempo_jax.errors import InputError

LEAVES = {"linear": "multiplier", "log": "log_multiplier", "softplus": "softplus_multiplier"}


def step(controller, dual_params, state, **violations):
  """One jitted update from violations by name."""
  return update(controller, dual_params, state, jax.tree.map(jnp.float32, violations))


@functools.partial(jax.jit, static_argnames="controller")
def update(controller, dual_params, state, violations):
  constraints = {name: duals.Constraint(value, 0.0) for name, value in violations.items()}
  gradients = jax.grad(lambda params: duals.lagrangian_terms(params, constraints).dual_loss)(dual_params)
  updates, state = controller.update(gradients, state, dual_params)
  return optax.apply_updates(dual_params, updates), state


def run(controller, violations, initial=0.0, parametrisation="linear"):
  """The multiplier after each of the given violations of one constraint, and the last state."""
  dual_params = duals.init_dual_params({"c": initial}, parametrisation=parametrisation)
  state, path = controller.init(dual_params), []
  for violation in violations:
    dual_params, state = step(controller, dual_params, state, c=violation)
    path.append(float(duals.multipliers(dual_params)["c"]))
  return path, state


def test_constraint_directions():
  assert duals.Constraint(3.0, 1.0).violation == 2.0
  assert duals.at_most(3.0, 1.0).violation == 2.0
  assert duals.at_least(3.0, 1.0).violation == -2.0
  assert tuple(duals.at_least(3.0, 1.0)) == (-3.0, -1.0)
  through = jax.jit(lambda c: c)(duals.at_least(3.0, 1.0))
  assert type(through) is duals.AtLeast and through.violation == -2.0


@pytest.mark.parametrize("parametrisation", LEAVES)
@pytest.mark.parametrize("value", [1e-6, 0.3, 40.0])
def test_parametrisations_hold_their_initial_value(parametrisation, value):
  dual_params = duals.init_dual_params({"c": value}, parametrisation=parametrisation)
  assert list(dual_params["c"]) == [LEAVES[parametrisation]]
  assert dual_params["c"][LEAVES[parametrisation]].dtype == jnp.float32
  np.testing.assert_allclose(duals.multipliers(dual_params)["c"], value, rtol=2e-6)


def test_parametrisation_by_name():
  dual_params = duals.init_dual_params({"a": 1.0, "b": 2.0}, parametrisation={"a": "linear", "b": "log"})
  assert set(dual_params["a"]) == {"multiplier"} and set(dual_params["b"]) == {"log_multiplier"}


def terms_of(constraint):
  return duals.dual_step(duals.init_dual_params({"kl": 1.0}), (), {"kl": constraint}, optax.sgd(1.0))


@pytest.mark.parametrize(
  "call, words",
  [
    (
      lambda: duals.init_dual_params({"c": 1.0}, parametrisation="sigmoid"),
      "unknown parametrisation 'sigmoid'",
    ),
    (lambda: duals.init_dual_params({"c": 0.0}, parametrisation="log"), "'c' is 0.0.*positive"),
    (lambda: duals.init_dual_params({"c": -1.0}), "'c' is -1.0.*at least 0"),
    (
      lambda: duals.init_dual_params({"c": 1.0}, parametrisation={"d": "log"}),
      "no setting for constraint 'c'",
    ),
    (
      lambda: duals.lagrangian_terms({}, {"kl": duals.at_most(1.0, 0.0)}),
      "no dual parameters for constraint 'kl'",
    ),
    (lambda: duals.plain_ascent(0.1, smoothing=1.0), "smoothing is 1.0"),
    (lambda: duals.plain_ascent(0.1, cap=0.0), "cap is 0.0"),
    (lambda: duals.plain_ascent(0.1, cap=jnp.ones(3)), r"cap has shape \(3,\): give one number"),
    (lambda: duals.init_dual_params({"c": np.ones(2)}), r"multiplier of 'c' has shape \(2,\).*jax.vmap"),
    (lambda: duals.init_dual_params({"c": "high"}), "multiplier of 'c' is 'high': give a number"),
    (lambda: terms_of(duals.at_most(jnp.ones(4), 0.0)), r"^constraint 'kl' has a value of shape \(4,\): give one"),
    (lambda: terms_of(duals.at_least(1.0, jnp.ones(1))), r"^constraint 'kl' has a bound of shape \(1,\)"),
    (lambda: terms_of(1.5), "^constraint 'kl' is 1.5: give at_most"),
    (lambda: duals.skipped(optax.adam(0.1).init(jnp.zeros(2))), "counts no measurements"),
  ],
)
def test_bad_settings_are_named(call, words):
  with pytest.raises(InputError, match=words):
    call()


@pytest.mark.parametrize("parametrisation", LEAVES)
def test_stop_gradient_splits_the_two_halves(parametrisation):
  dual_params = duals.init_dual_params({"quality": 2.0, "kl": 3.0}, parametrisation=parametrisation)

  def terms(dual_params, policy):
    constraints = {"quality": duals.at_least(policy**2, 5.0), "kl": duals.at_most(7 * policy, 1.0)}
    return duals.lagrangian_terms(dual_params, constraints)

  value = terms(dual_params, 2.0)
  np.testing.assert_allclose(value, [2 * 1 + 3 * 13, -(2 * 1 + 3 * 13)], rtol=1e-6)
  penalty = jax.grad(lambda params, policy: terms(params, policy).penalty, argnums=(0, 1))(dual_params, 2.0)
  dual_loss = jax.grad(lambda params, policy: terms(params, policy).dual_loss, argnums=(0, 1))(dual_params, 2.0)
  assert all(gradient == 0 for gradient in jax.tree.leaves(penalty[0]))
  np.testing.assert_allclose(penalty[1], 2 * -4 + 3 * 7, rtol=1e-6)
  assert dual_loss[1] == 0
  leaf = LEAVES[parametrisation]
  np.testing.assert_allclose([dual_loss[0]["quality"][leaf], dual_loss[0]["kl"][leaf]], [-1, -13], rtol=1e-6)


def test_an_unenforced_constraint_keeps_its_multiplier():
  dual_params = duals.init_dual_params({"quality": 2.0, "kl": 3.0, "length": 0.7}, parametrisation="softplus")
  controller = duals.pi_controller(proportional_gain=1.0, integral_gain=0.5, smoothing=0.5)
  state, before = controller.init(dual_params), duals.multipliers(dual_params)
  for _ in range(3):
    dual_params, state = step(controller, dual_params, state, quality=1.0)
  after = duals.multipliers(dual_params)
  assert after["kl"] == before["kl"] and after["length"] == before["length"]
  assert after["quality"] > before["quality"] + 1


def test_step_divisor_counts_enforced_multipliers_and_is_detached():
  dual_params = duals.init_dual_params({"quality": 2.0, "kl": 3.0, "length": 9.0})
  constraints = {"quality": duals.at_least(0.0, 1.0), "kl": duals.at_most(0.0, 1.0)}
  assert duals.step_divisor(dual_params, constraints) == 6.0
  gradients = jax.grad(lambda params: duals.step_divisor(params, constraints))(dual_params)
  assert all(gradient == 0 for gradient in jax.tree.leaves(gradients))


def test_metrics_speak_the_users_sign():
  dual_params = duals.init_dual_params({"quality": 2.0, "kl": 3.0, "unused": 1.0})
  constraints = {"quality": duals.at_least(0.7, 0.9), "kl": duals.at_most(4.0, 5.0)}
  metrics = jax.jit(duals.dual_metrics)(dual_params, constraints)
  expected = {
    "dual/quality/multiplier": 2.0,
    "dual/quality/value": 0.7,
    "dual/quality/bound": 0.9,
    "dual/quality/violation": 0.2,
    "dual/kl/multiplier": 3.0,
    "dual/kl/value": 4.0,
    "dual/kl/bound": 5.0,
    "dual/kl/violation": -1.0,
  }
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def test_plain_ascent_integrates_and_recovers_from_zero():
  path, _ = run(duals.plain_ascent(0.5), [1.0, 1.0, -5.0, -5.0, 1.0])
  np.testing.assert_allclose(path, [0.5, 1.0, 0.0, 0.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("parametrisation", ["log", "softplus"])
def test_positive_parametrisations_recover_from_their_floor(parametrisation):
  controller = duals.plain_ascent(1.0, floor=1e-3)
  path, _ = run(controller, [-100.0] * 2 + [1.0] * 12, initial=1.0, parametrisation=parametrisation)
  np.testing.assert_allclose(path[1], 1e-3, rtol=1e-4)
  assert path[-1] > 1


def test_log_leaf_moves_by_the_violation():
  path, _ = run(duals.plain_ascent(0.5), [1.0, 2.0], initial=1e-4, parametrisation="log")
  np.testing.assert_allclose(np.log(path), math.log(1e-4) + np.array([0.5, 1.5]), rtol=1e-5)


def test_proportional_part_leaves_no_trace():
  controller = duals.pi_controller(proportional_gain=2.0, integral_gain=0.1)
  path, _ = run(controller, [1.0, -1.0, 0.0], initial=1.0)
  np.testing.assert_allclose(path, [1.1 + 2.0, 0.0, 1.0], atol=1e-6)


def test_smoothing_is_a_corrected_moving_average():
  controller = duals.pi_controller(proportional_gain=1.0, integral_gain=0.0, smoothing=0.9)
  path, _ = run(controller, [2.0, 2.0, 0.0])
  np.testing.assert_allclose(path, [2.0, 2.0, 2 * (0.9 * 0.19) / (1 - 0.9**3)], rtol=1e-5)


def test_gains_by_name():
  controller = duals.pi_controller(proportional_gain=0.0, integral_gain={"a": 1.0, "b": 0.25})
  dual_params = duals.init_dual_params({"a": 0.0, "b": 0.0})
  dual_params, _ = step(controller, dual_params, controller.init(dual_params), a=1.0, b=1.0)
  assert duals.multipliers(dual_params) == {"a": 1.0, "b": 0.25}


def test_delay_changes_nothing_but_measures():
  controller = duals.pi_controller(proportional_gain=1.0, integral_gain=1.0, smoothing=0.5, delay=2)
  path, state = run(controller, [1.0, 1.0, 1.0], initial=0.3)
  np.testing.assert_allclose(path, [0.3, 0.3, 0.3 + 1 + 1], rtol=1e-6)
  assert state[0].measured["c"]["multiplier"] == 3


@pytest.mark.parametrize("parametrisation", LEAVES)
def test_cap_and_anti_windup(parametrisation):
  controller = duals.pi_controller(proportional_gain=1.0, integral_gain=0.5, cap=4.0)
  path, state = run(controller, [3.0] * 50 + [-0.5], initial=1.0, parametrisation=parametrisation)
  np.testing.assert_allclose(path[10:50], 4.0, rtol=1e-5)
  assert path[-1] < 1.7  # held: the integral has not wound up to the cap
  integral = state[0].integral["c"][LEAVES[parametrisation]]
  assert integral <= duals.init_dual_params({"c": 4.0}, parametrisation=parametrisation)["c"][LEAVES[parametrisation]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_is_skipped_and_counted(bad):
  controller = duals.pi_controller(proportional_gain=1.0, integral_gain=0.5, smoothing=0.5)
  clean, _ = run(controller, [1.0, 0.5])
  path, state = run(controller, [1.0, bad, 0.5])
  assert path[1] == path[0]
  np.testing.assert_allclose([path[0], path[2]], clean, rtol=1e-6)
  assert state[0].skipped["c"]["multiplier"] == 1 and state[0].measured["c"]["multiplier"] == 2


def test_one_bad_measurement_leaves_the_other_constraint_alone():
  controller = duals.plain_ascent(1.0)
  dual_params = duals.init_dual_params({"a": 0.0, "b": 0.0})
  dual_params, state = step(controller, dual_params, controller.init(dual_params), a=jnp.nan, b=1.0)
  assert duals.multipliers(dual_params) == {"a": 0.0, "b": 1.0}
  assert state[0].skipped["a"]["multiplier"] == 1 and state[0].skipped["b"]["multiplier"] == 0


def test_state_is_a_pytree_that_resumes_exactly():
  controller = duals.pi_controller(proportional_gain=2.0, integral_gain=0.1, smoothing=0.9, delay=1, cap=5.0)
  violations = [0.3, -0.2, 0.7, 0.1, -0.4, 0.2]
  dual_params = duals.init_dual_params({"c": 0.2, "d": 1.0}, parametrisation={"c": "linear", "d": "log"})
  state = controller.init(dual_params)
  straight = (dual_params, state)
  for violation in violations:
    straight = step(controller, *straight, c=violation, d=-violation)
  resumed = (dual_params, state)
  for violation in violations[:3]:
    resumed = step(controller, *resumed, c=violation, d=-violation)
  leaves, structure = jax.tree.flatten(resumed)
  resumed = jax.tree.unflatten(structure, [jnp.asarray(np.array(leaf)) for leaf in leaves])  # as a checkpoint does
  for violation in violations[3:]:
    resumed = step(controller, *resumed, c=violation, d=-violation)
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_controller_needs_the_dual_parameters():
  controller = duals.plain_ascent(0.1)
  dual_params = duals.init_dual_params({"c": 0.0})
  with pytest.raises(ValueError, match="dual parameters"):
    controller.update(dual_params, controller.init(dual_params))


def test_projection_closes_any_chain():
  optimizer = optax.chain(optax.sgd(1.0), duals.project_multipliers(cap=2.0))
  for violation, expected in ((-3.0, 0.0), (0.5, 1.5), (9.0, 2.0)):
    dual_params = duals.init_dual_params({"c": 1.0})
    moved, _ = step(optimizer, dual_params, optimizer.init(dual_params), c=violation)
    assert duals.multipliers(moved)["c"] == expected


@pytest.mark.parametrize("noise", [0.0, study.NOISE])
def test_pi_settles_in_half_the_steps_and_a_third_of_the_overshoot(noise):
  plain, controlled = study.measure("plain ascent", noise), study.measure("PI", noise)
  assert plain["settled_at_step"] > 300 and plain["overshoot"] > 0.3
  assert controlled["settled_at_step"] < plain["settled_at_step"] / 2
  assert controlled["overshoot"] < plain["overshoot"] / 3
  np.testing.assert_allclose(controlled["final_reward"], study.MIN_REWARD, atol=0.01)


def test_velocity_form_turns_noise_into_drift():
  assert study.measure("PI, velocity form", study.NOISE)["final_reward"] > study.MIN_REWARD + 0.1


def test_floor_specifications():
  rewards = np.array([[0.0, 1.0], [0.2, 0.4]])
  assert duals.resolve_floor(0.5, rewards) == 0.5
  assert duals.resolve_floor(("quantile", 0.5), rewards) == pytest.approx(0.3)
  assert duals.resolve_floor(["reference_minus", 0.1], rewards) == pytest.approx(0.3)
  assert duals.resolve_floor(0.95, rewards, max_reward=1.0) == 0.95
  assert duals.resolve_floor(0.7, rewards) == 0.7  # best of each prompt: (1.0 + 0.4) / 2


@pytest.mark.parametrize(
  "spec, settings, words",
  [
    (0.8, {}, r"0\.8 is out of reach.* mean 0\.4 .*at most 0\.7"),
    (("quantile", 1.0), {}, r"floor 1 is out of reach.*at most 0\.7"),
    (2.0, {"max_reward": 1.0}, r"at most 1$"),
    (math.nan, {}, "out of reach"),
    (("quantile", 2), {}, "not understood"),
    ("0.5", {}, "not understood"),
  ],
)
def test_impossible_floors_are_explained(spec, settings, words):
  with pytest.raises(InputError, match=words):
    duals.resolve_floor(spec, np.array([[0.0, 1.0], [0.2, 0.4]]), **settings)


def test_floor_needs_finite_rewards():
  with pytest.raises(InputError, match="finite"):
    duals.resolve_floor(0.5, np.array([0.0, np.nan]))


def test_dual_step_is_gradient_controller_and_update_in_one():
  controller = duals.pi_controller(proportional_gain=0.5, integral_gain=0.1, smoothing=0.5)
  params = duals.init_dual_params({"quality": 2.0, "kl": 1.0}, parametrisation={"quality": "log", "kl": "linear"})
  state = controller.init(params)
  constraints = {"quality": duals.at_least(0.4, 0.9), "kl": duals.at_most(2.0, 2.0)}
  gradient = jax.grad(lambda d: duals.lagrangian_terms(d, constraints).dual_loss)(params)
  updates, want_state = controller.update(gradient, state, params)
  step = jax.jit(lambda *x: duals.dual_step(*x, constraints, controller))
  got, got_state, metrics = step(params, state)
  chex.assert_trees_all_close(got, optax.apply_updates(params, updates))
  chex.assert_trees_all_close(got_state, want_state)
  multipliers = duals.multipliers(got)
  assert multipliers["quality"] > 2 and multipliers["kl"] == 1
  np.testing.assert_allclose(metrics["dual/quality/multiplier"], 2.0, rtol=1e-6)


CONTROLLERS = {
  "pi": duals.pi_controller(proportional_gain=2.0, integral_gain=0.1, smoothing=0.5),
  "equal_gains": duals.pi_controller(proportional_gain=0.3, integral_gain=0.3, delay=1),
  "adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1), duals.project_multipliers()),
  "apply_if_finite": optax.apply_if_finite(duals.plain_ascent(0.3), 3),
  "multi_transform": optax.multi_transform(
    {"a": duals.pi_controller(proportional_gain=2.0, integral_gain=0.1), "b": duals.plain_ascent(0.5, cap=3.0)},
    {"quality": "a", "kl": "b"},
  ),
  "masked": optax.chain(
    optax.masked(duals.plain_ascent(0.5), {"quality": True, "kl": False}),
    optax.masked(optax.set_to_zero(), {"quality": False, "kl": True}),
  ),
  "inject_hyperparams": optax.inject_hyperparams(duals.pi_controller)(
    proportional_gain=2.0, integral_gain=optax.linear_schedule(0.1, 0.2, 4), smoothing=0.5, delay=1, cap=5.0
  ),
  "inject_ascent": optax.inject_hyperparams(duals.plain_ascent)(0.3, cap=4.0),
}


@functools.partial(jax.jit, static_argnames=("controller", "left_out"), donate_argnums=(0, 1))
def both_measured_then(dual_params, dual_state, kl, *, controller, left_out):
  """A step that measures both constraints, then three of quality, with KL left out or of value `kl`."""
  path = [dual_params]
  for t in range(4):
    constraints = {
      "quality": duals.at_least(0.5, 0.9),
      "kl": duals.at_most(2.5, 1.0) if t == 0 else duals.at_most(kl, 1.0),
    }
    if t and left_out:
      del constraints["kl"]
    dual_params, dual_state, _ = duals.dual_step(dual_params, dual_state, constraints, CONTROLLERS[controller])
    path.append(dual_params)
  return path, dual_state


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_constraint_left_out_stands_still_as_one_of_nan_does(name):
  def steps(left_out):  # both arguments are donated from the first step on: no two leaves share an array
    params = duals.init_dual_params({"quality": 2.0, "kl": 1.0}, parametrisation={"quality": "log", "kl": "linear"})
    state = CONTROLLERS[name].init(params)
    return both_measured_then(params, state, jnp.nan, controller=name, left_out=left_out)

  (path, state), same = steps(True), steps(False)
  chex.assert_trees_all_equal((path, state), same)
  chex.assert_tree_all_finite(path)
  assert path[1]["kl"] == path[2]["kl"] == path[4]["kl"]
  quality = [float(p["quality"]["log_multiplier"]) for p in path]
  assert quality[4] > quality[3] > quality[2]
  if name == "adam":
    assert state[1][0].mu["kl"]["multiplier"] == pytest.approx(-0.1, rel=0.2)  # of the first step alone
  elif name != "masked":
    assert duals.measured(state) == {"quality": 4, "kl": 1} and duals.skipped(state) == {"quality": 0, "kl": 3}
  else:
    assert duals.measured(state) == {"quality": 4}


@pytest.mark.parametrize("init", [CONTROLLERS["pi"].init, jax.jit(CONTROLLERS["pi"].init)])
def test_no_two_leaves_of_the_first_state_share_an_array(init):
  start = jnp.float32(1.0)
  params = duals.init_dual_params({"a": start, "b": start})
  leaves = [start, *jax.tree.leaves((params, init(params)))]
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize("parametrisation", LEAVES)
def test_initial_multipliers_caps_and_gains_may_be_swept(parametrisation):
  def last(initial, gain, cap):
    params = duals.init_dual_params({"c": initial}, parametrisation=parametrisation)
    controller = duals.pi_controller(proportional_gain=gain, integral_gain={"c": gain}, cap=cap, floor=cap / 1e3)
    state = controller.init(params)
    for _ in range(3):
      params, state, _ = duals.dual_step(params, state, {"c": duals.at_most(1.0, 0.5)}, controller)
    return duals.multipliers(params)["c"]

  sweep = [0.5, 1.0, 1.0, 3.0], [0.1, 0.1, 1.0, 0.2], [9.0, 0.7, 1.5, 50.0]
  swept = jax.jit(jax.vmap(last))(*map(jnp.array, sweep))
  np.testing.assert_allclose(swept, [last(*one) for one in zip(*sweep, strict=True)], rtol=2e-6)
  np.testing.assert_allclose(swept[1:3], [0.7, 1.5], rtol=1e-5)  # at their caps
