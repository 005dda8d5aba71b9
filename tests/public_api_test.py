"""The public names are there, documented, and composable under jit, vmap and grad."""

import inspect
import operator

import jax
import jax.numpy as jnp
import numpy as np

import qempo_jax as qj

NAMES = """
family.weights_from_multipliers family.multipliers_from_weights family.target_log_probs
exact.solve_rlhf exact.solve_qempo exact.solve_qempo_kl exact.InfeasibleError
losses.preference_loss losses.qempo_loss losses.qempo_kl_loss losses.dpo_loss losses.ipo_loss
losses.simpo_loss losses.cpo_loss losses.policy_gradient_loss losses.trajectory_balance_loss
advantages.shaped_rewards estimators.sequence_entropy_surrogate token_stats.token_stats
duals.Constraint duals.init_dual_params duals.lagrangian_terms testing.check_loss
constraints.Constraint constraints.reward_floor constraints.kl_budget constraints.length_budget
constraints.coherence_budget constraints.measure constraints.shortfall exact.solve_qempo_coherent group_loss
methods.Method methods.resolve methods.qempo methods.qempo_kl methods.qempo_c methods.grpo methods.mara methods.ucpo
methods.setpo methods.maxrl train.policy_step train.dual_step train.TrainState
sampled_duals.solve_rlhf sampled_duals.solve_qempo sampled_duals.solve_qempo_kl sampled_duals.at_weights
sampled_evidence.hidden_share sampled_evidence.bootstrap sampled_evidence.expected_best_of
""".split()


def test_every_public_name_exists_and_is_documented():
  things = {name: operator.attrgetter(name)(qj) for name in NAMES}
  assert not [name for name, thing in things.items() if len(inspect.getdoc(thing) or "") <= 40]


def test_every_exported_loss_is_documented():
  for name in qj.losses.__all__:
    thing = getattr(qj.losses, name)
    if inspect.isfunction(thing) and name.endswith("_loss"):
      doc = inspect.getdoc(thing)
      assert "Args:" in doc and "Returns:" in doc, name


def test_losses_and_duals_compose_under_jit():
  @jax.jit
  def step(log_probs, dual_params):
    terms = qj.duals.lagrangian_terms(dual_params, {"quality": qj.duals.at_least(jnp.asarray(0.7), 0.9)})
    pairs = jax.vmap(lambda chosen, rejected: qj.losses.qempo_loss(chosen, rejected, alpha=0.1))
    return jnp.mean(pairs(log_probs[:, 0], log_probs[:, 1])) + terms.penalty + terms.dual_loss

  dual_params = qj.duals.init_dual_params({"quality": 2.0})
  gradient = jax.grad(step, 1)(jnp.ones((3, 2)), dual_params)
  np.testing.assert_allclose(gradient["quality"]["multiplier"], -0.2, rtol=1e-6)
