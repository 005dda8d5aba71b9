"""The offline loop, on pairs with sampled labels, ends at the floor: measured duals enforce it, fixed weights do not."""

import jax
import numpy as np
import pytest

from qempo_jax import exact
from qempo_jax.testing.sequence_space import sequence_space
from tests.loops import offline_toy
from tests.loops import toy

FLOOR = 0.5


def _train(folder, *, loss, weights, steps, pairs, per_step, scale, max_kl=None, **changes):
  config = offline_toy.config(folder, count=pairs, scale=scale)
  config.steps = steps
  config.offline.loss, config.offline.weights = loss, weights
  config.offline.pairs_per_step, config.offline.pairs_per_row = per_step, 8
  config.constraints.quality.bound, config.constraints.kl.bound = FLOOR, max_kl
  config.duals.averaging = 0.95
  config.optimizer.learning_rate, config.optimizer.final_fraction = 4e-3, 0.1
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  policy = toy.policy()
  state = toy.train(config, folder, policy, offline_toy.Recorder())
  return policy, state


def _exact_values(params):
  """Exact entropy and expected reward of a policy, means over the prompts; and its log-probs."""
  log_probs = toy.log_probs(params)
  probs = np.exp(log_probs)
  return -(probs * log_probs).sum(axis=1).mean(), (probs * toy.rewards()).sum(axis=1).mean(), log_probs


def _normalised(log_probs):
  return log_probs - np.log(np.exp(log_probs).sum(axis=1, keepdims=True))


SETTINGS = dict(loss="qempo", steps=400, pairs=60_000, per_step=128, scale=16.0)


@pytest.mark.slow
def test_fixed_weights_miss_the_floor(tmp_path):
  _, fixed = _train(tmp_path, weights="fixed", **SETTINGS)
  entropy, reward, _ = _exact_values(fixed.params)
  print(f"fixed weights: entropy {entropy:.4f}, reward {reward:.4f}")
  assert abs(reward - FLOOR) > 0.1


SHORT = SETTINGS | dict(
  steps=120,
  pairs=8000,
  per_step=64,
  offline__log_change=False,
  data__prompts_per_step=8,
  sampling__group_size=16,
  compute__bucket=32,
  optimizer__learning_rate=1.5e-2,
)


@pytest.mark.parametrize(
  ("length", "settings"), [(2, SHORT), pytest.param(4, SETTINGS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_measured_duals_hold_the_floor(tmp_path, monkeypatch, length, settings):
  monkeypatch.setattr(toy, "SPACE", sequence_space(6, length))
  policy, learned = _train(tmp_path, weights="multipliers", **settings)
  ref_log_probs = _normalised(toy.log_probs(policy.params))
  with jax.enable_x64(True):
    best = exact.solve_qempo(toy.rewards(), min_reward=FLOOR, ref_log_probs=ref_log_probs)
  entropy, reward, _ = _exact_values(learned.params)
  print(f"entropy {entropy:.4f} exact {np.mean(best.entropy):.4f}, reward {reward:.4f}")
  assert reward == pytest.approx(FLOOR, abs=0.02)
  assert entropy == pytest.approx(float(np.mean(best.entropy)), rel=0.02)


@pytest.mark.slow
def test_measured_duals_reach_the_qempo_kl_optimum(tmp_path):
  policy = toy.policy()
  ref_log_probs = _normalised(toy.log_probs(policy.params))
  with jax.enable_x64(True):
    found = exact.feasible_range(toy.rewards(), ref_log_probs, min_reward=FLOOR)
    max_kl = float(found.kl_budget_at(0.25))
    best = exact.solve_qempo_kl(toy.rewards(), ref_log_probs, min_reward=FLOOR, max_kl=max_kl)
  _, state = _train(
    tmp_path, loss="qempo_kl", weights="multipliers", steps=1500, pairs=200_000, per_step=256, scale=16.0, max_kl=max_kl
  )
  entropy, reward, log_probs = _exact_values(state.params)
  kl = (np.exp(log_probs) * (log_probs - ref_log_probs)).sum(axis=1).mean()
  averaged = {name: float(value) for name, value in state.averages.values().items()}
  print(f"entropy {entropy:.4f} exact {np.mean(best.entropy):.4f}, reward {reward:.4f}, KL {kl:.4f} of {max_kl:.4f}")
  print(averaged, best.quality_multiplier, best.kl_multiplier)
  assert reward == pytest.approx(FLOOR, abs=0.02)
  assert kl == pytest.approx(max_kl, rel=0.03)
  assert entropy == pytest.approx(float(np.mean(best.entropy)), rel=0.03)
  assert averaged["multiplier/kl"] == pytest.approx(float(best.kl_multiplier), rel=0.1)
