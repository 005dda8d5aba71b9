"""The acceptable set of the coherence constraint: threshold, floor, group quantile, soft gate; and errors on bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from configs import base
from experiments.configured import constraints as build_constraints
from qempo_jax import constraints
from qempo_jax import exact
from qempo_jax import methods
from qempo_jax.errors import InputError
from qempo_jax.token_stats import TokenStats

REWARDS = np.array([0.1, 0.9, 0.5, np.nan, 0.7, 99.0])
REF = -np.arange(1.0, 7.0)
FRESH = np.array([True] * 5 + [False])


def _cost(**settings):
  group = constraints.Group(
    {"reward": jnp.asarray(REWARDS)}, jnp.asarray(REF), jnp.ones((6, 1), bool), FRESH, ~FRESH, jnp.ones(6)
  )
  return np.asarray(constraints.coherence_budget(None, **settings).value(group))


def test_only_unacceptable_responses_pay_and_unscored_ones_have_no_value():
  np.testing.assert_allclose(_cost(threshold=0.7), [1, 0, 3, np.nan, 0, 0])
  # Of the fresh rewards .1, .5, .7, .9 the quantile is one of them: .7 and not the replayed 99.
  np.testing.assert_allclose(_cost(quantile=0.75), [1, 0, 3, np.nan, 0, 0])
  np.testing.assert_allclose(_cost(quantile=0.4), [1, 0, 0, np.nan, 0, 0])
  soft = scipy.special.expit((0.7 - REWARDS) / 0.1) * -REF
  np.testing.assert_allclose(_cost(threshold=0.7, width=0.1), soft, rtol=1e-5, atol=1e-30)
  np.testing.assert_allclose(_cost(threshold=0.7, width=1e-6)[[0, 1, 2]], [1, 0, 3], atol=1e-6)


@pytest.mark.parametrize("width", [0.0, 0.1, 1.0])
def test_every_shaped_reward_is_the_same_at_the_optimum_of_any_gate(x64, width):
  rng = np.random.default_rng(0)
  size, nu, threshold = 30, 1.3, 0.6
  rewards, ref = rng.random(size), np.log(rng.dirichlet(np.ones(size)))
  best = exact.solve_qempo_coherent(rewards, ref, min_reward=0.9, threshold=threshold, nu=nu, width=width)
  np.testing.assert_allclose(np.exp(best.log_probs) @ rewards, 0.9, rtol=1e-9)
  bounds = {
    "quality": constraints.reward_floor("reward", 0.9),
    "coherence": constraints.coherence_budget(None, threshold, width=width),
  }
  prices = methods.Prices(1.0, {"quality": best.quality_multiplier, "coherence": nu})
  group = constraints.Group.on_policy({"reward": jnp.asarray(rewards)}, np.ones((size, 1), bool), jnp.asarray(ref))
  loss = lambda lp: methods.group_loss(
    TokenStats(lp[:, None], jnp.zeros((size, 1))), group, prices, bounds, methods.qempo_c(), replay_weight=0.0
  )
  np.testing.assert_allclose(jax.grad(loss)(best.log_probs), 0, atol=1e-9)
  assert np.abs(jax.grad(loss)(jnp.asarray(ref))).max() > 1e-3  # elsewhere it is not
  spent = constraints.measure(bounds, group.replace(weight=size * jnp.exp(best.log_probs)), best.log_probs)
  np.testing.assert_allclose(
    spent["coherence"], exact.coherence(best.log_probs, rewards, ref, threshold=threshold, width=width), rtol=1e-6
  )


def test_a_soft_gate_brings_the_references_preferences_and_the_volume_of_garbage_back(x64):
  """Binary reward, tau = 1/2: with g the gate of the bad, odds among acceptable answers are q^(1 - g), garbage weighs sum q^g."""
  ref, width = np.log(np.concatenate([[0.2, 0.05], np.full(1000, 0.75 / 1000)])), 0.25
  rewards = (np.arange(1002) < 2).astype(float)
  gate = scipy.special.expit(0.5 / width)
  best = exact.solve_qempo_coherent(rewards, ref, min_reward=0.9, threshold=0.5, width=width)
  np.testing.assert_allclose(best.log_probs[0] - best.log_probs[1], (1 - gate) * np.log(4), rtol=1e-9)
  garbage, good = np.exp(gate * ref[2:]).sum(), np.exp((1 - gate) * ref[:2]).sum()
  np.testing.assert_allclose(best.quality_multiplier, np.log(9) + np.log(garbage / good), rtol=1e-8)
  hard = exact.solve_qempo_coherent(rewards, ref, min_reward=0.9, threshold=0.5)
  assert best.quality_multiplier > hard.quality_multiplier + 0.5


@pytest.mark.parametrize(
  ("settings", "named"),
  [
    ({}, "needs either a threshold"),
    ({"threshold": 0.5, "quantile": 0.5}, "needs either"),
    ({"quantile": 1.0}, "quantile=1 must lie strictly between 0 and 1"),
    ({"threshold": float("nan")}, "threshold is NaN"),
    ({"threshold": 0.5, "width": -0.1}, "width=-0.1 .* at least 0"),
  ],
)
def test_nonsense_is_refused_in_one_line(settings, named):
  with pytest.raises(InputError, match=named) as caught:
    constraints.coherence_budget(None, **settings)
  assert "\n" not in str(caught.value)


def _of_config(**settings):
  config = base.get_config()
  config.method, config.reward.max = "qempo_c", 1.0
  config.constraints.quality.bound = settings.pop("floor", 0.5)
  config.constraints.coherence.update(settings)
  group = constraints.Group.on_policy({"reward": jnp.array([0.2, 0.5, 0.8])}, jnp.ones((3, 1), bool), -jnp.ones(3))
  return np.asarray(build_constraints.constraints(config)["coherence"].value(group)).tolist()


def test_the_config_says_what_is_acceptable_the_floor_where_it_says_nothing():
  assert _of_config() == [1, 0, 0]
  assert _of_config(threshold=0.8) == [1, 1, 0]
  assert _of_config(quantile=0.7, floor=None) == [1, 0, 0]
  np.testing.assert_allclose(_of_config(width=0.1), scipy.special.expit([3, 0, -3]), rtol=1e-5)
  with pytest.raises(InputError, match="needs to know what is acceptable"):
    _of_config(floor=None)
  with pytest.raises(InputError, match=r"threshold=0\.3 and quantile=0\.7"):
    _of_config(threshold=0.3, quantile=0.7)
  with pytest.raises(InputError, match=r"threshold=1\.5 is above reward\.max=1"):
    _of_config(threshold=1.5)


def test_budgets_that_no_policy_meets_are_refused():
  for make, bound in (
    (constraints.kl_budget, -1.0),
    (constraints.entropy_budget, -0.1),
    (constraints.length_budget, 0.5),
    (lambda bound: constraints.coherence_budget(bound, 0.5), -1),
  ):
    with pytest.raises(InputError, match="no policy could meet it"):
      make(bound)
    jax.eval_shape(lambda bound, make=make: make(bound).bound, 0.0)  # a traced bound is not looked at
