"""The online loop, with a real (tiny) transformer and all its sampling noise, ends at the exact optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import build
from experiments import plan as plans
from qempo_jax import duals
from qempo_jax import exact
from qempo_jax import train
from qempo_jax.testing.sequence_space import sequence_space
from tests.loops import toy


def _exact(ref_log_probs, min_reward, kl_position):
  """The program's solution under one global pair of multipliers."""
  rewards = toy.rewards()
  with jax.enable_x64(True):
    if kl_position is None:
      return exact.solve_qempo(rewards, min_reward=min_reward, ref_log_probs=ref_log_probs), None
    found = exact.feasible_range(rewards, ref_log_probs, min_reward=min_reward)
    max_kl = float(found.kl_budget_at(kl_position))
    return exact.solve_qempo_kl(rewards, ref_log_probs, min_reward=min_reward, max_kl=max_kl), max_kl


def test_loop_reaches_the_exact_optimum_of_short_responses(tmp_path, monkeypatch):
  monkeypatch.setattr(toy, "SPACE", sequence_space(6, 2))

  def change(config):
    config.steps, config.optimizer.learning_rate, config.duals.averaging = 125, 2e-2, 0.95
    config.data.prompts_per_step, config.sampling.group_size, config.compute.bucket = 8, 16, 32
    quality = config.constraints.quality
    quality.start, quality.gain, quality.proportional_gain = 3.0, 0.45, 6.0

  test_loop_reaches_the_exact_optimum(tmp_path, None, "rao_blackwell", change)


@pytest.mark.slow
@pytest.mark.parametrize(("entropy_gradient", "kl_position"), [("score_function", 0.25), ("rao_blackwell", None)])
def test_loop_reaches_the_exact_optimum(tmp_path, kl_position, entropy_gradient, change=None):
  policy = toy.policy()
  ref_log_probs = toy.log_probs(policy.params)
  np.testing.assert_allclose(np.exp(ref_log_probs).sum(axis=1), 1.0, atol=1e-5)
  min_reward = 0.5
  solution, max_kl = _exact(
    ref_log_probs - np.log(np.exp(ref_log_probs).sum(1, keepdims=True)), min_reward, kl_position
  )

  config = toy.config(tmp_path)
  config.steps = 500 if kl_position is None else 1400  # two multipliers take longer to settle
  config.method = f"qempo_kl(entropy_gradient={entropy_gradient!r})"
  config.constraints.quality.bound = min_reward
  config.constraints.kl.bound = max_kl
  config.duals.averaging = 0.98
  quality, kl = config.constraints.quality, config.constraints.kl
  quality.parametrisation = "linear"
  quality.start, quality.gain, quality.proportional_gain = 2.0, 0.3, 5.0
  kl.start, kl.gain, kl.proportional_gain = 0.0 if max_kl is None else 0.5, 0.02, 0.2
  config.optimizer.learning_rate, config.optimizer.final_fraction = 5e-3 if kl_position is None else 4e-3, 0.1
  if change:
    change(config)
  state = toy.train(config, tmp_path, policy)

  log_probs = toy.log_probs(state.params)
  probs = np.exp(log_probs)
  entropy = -(probs * log_probs).sum(axis=1).mean()
  reward = (probs * toy.rewards()).sum(axis=1).mean()
  averaged = {name: float(value) for name, value in state.averages.values().items()}
  print(f"entropy {entropy:.4f} exact {np.mean(solution.entropy):.4f}; reward {reward:.4f}")
  print(averaged, solution.quality_multiplier, solution.kl_multiplier)
  assert entropy == pytest.approx(float(np.mean(solution.entropy)), rel=0.02)
  assert reward == pytest.approx(min_reward, abs=0.02)
  assert averaged["multiplier/quality"] == pytest.approx(float(solution.quality_multiplier), rel=0.1)
  if kl_position is not None:
    assert averaged["multiplier/kl"] == pytest.approx(float(solution.kl_multiplier), rel=0.1)
    kl = (probs * (log_probs - ref_log_probs)).sum(axis=1).mean()
    assert kl == pytest.approx(max_kl, rel=0.03)


def test_multipliers_stay_where_no_constraint_moves_them(tmp_path):
  config = toy.config(tmp_path)
  config.constraints.quality.bound = None
  plan = build.plan(config, toy.policy())
  state, _ = plans.initial(plan.first_state, plan.policy.params, plan.policy.mesh)
  measured = dict.fromkeys(("reward", "entropy", "kl", "quality"), jnp.float32(9.0))
  settings = {"constraints": plan.objective.constraints, "controller": plan.optimizers.dual}
  move = lambda state: train.dual_step(state, measured, **settings)[0]
  state = jax.jit(move)(state)
  assert float(state.averages.values()["kl"]) == pytest.approx(9.0)
  values = duals.multipliers(state.dual_params)
  assert float(values["quality"]) == pytest.approx(config.constraints.quality.start)
  assert float(values["kl"]) == pytest.approx(config.constraints.kl.start)
