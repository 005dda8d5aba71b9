"""Losses of a prompt's scored responses, besides the checks of `battery_test`: weights, and exact optima."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qempo_jax import exact
from qempo_jax import losses
from qempo_jax.testing import check_loss
from qempo_jax.testing.problems import random_problem

PAIRS = dict(pair_weight=2.0, alpha=0.5, beta=0.5)
RIGHT = np.array([2, 5, 11])  # of 15 sequences


@pytest.fixture(scope="module")
def problem():
  with jax.enable_x64(True):
    return random_problem(jax.random.key(1), vocab_size=3, max_length=3, num_prompts=1, num_points=2)


def test_each_answer_has_one_share_whoever_gives_it():
  acceptable, answers = np.array([1, 1, 0, 1, 1, 0], bool), np.array([3, 3, 3, 8, 1, 5])
  np.testing.assert_allclose(losses.even_weights(acceptable, answers), np.array([1 / 2, 1 / 2, 0, 1, 1, 0]) / 3)
  jitted = jax.jit(losses.even_weights)(jnp.asarray(acceptable), jnp.asarray(answers))
  np.testing.assert_allclose(jitted, losses.even_weights(acceptable, answers), rtol=1e-6)
  assert isinstance(losses.even_weights(acceptable, answers), np.ndarray)
  np.testing.assert_array_equal(losses.even_weights(np.zeros(6, bool), answers), 0)


def _log(problem):
  """A log that the reference may have drawn: right sequences 6, 2 and 1 times, each wrong one once."""
  wrong = np.setdiff1d(np.arange(problem.policy.space.num_sequences), RIGHT)[:-2]  # two were never drawn
  drawn = np.concatenate([np.repeat(RIGHT, (6, 2, 1)), wrong])
  return drawn, np.isin(drawn, RIGHT)


def _loss(problem, weights, **hyper):
  drawn, acceptable = _log(problem)
  rejected, mask = ~acceptable / np.sum(~acceptable), np.ones(len(drawn), bool)

  def loss(params):
    log_probs = problem.policy.log_probs(params)[drawn]
    return losses.listwise_loss(log_probs, problem.ref_log_probs[drawn], weights, rejected, mask, **hyper)

  return loss


@pytest.mark.parametrize("pair_weight", [0.0, 2.0])
@pytest.mark.parametrize("spread", ["even", "as_drawn"])
def test_the_fixed_point_is_uniform_over_the_logged_right_answers_or_as_they_were_drawn(
  x64, problem, pair_weight, spread
):
  """The likelihood is lowest at the weights' own distribution; there the pair terms are 0, and training gets there."""
  drawn, acceptable = _log(problem)
  weights = losses.even_weights(acceptable, drawn) if spread == "even" else acceptable / np.sum(acceptable)
  target = np.full(problem.policy.space.num_sequences, 1e-30)
  np.add.at(target, drawn, weights)
  if spread == "even":
    np.testing.assert_allclose(target[RIGHT], 1 / 3)
  loss = _loss(problem, weights, **PAIRS | {"pair_weight": pair_weight})
  there = problem.policy.space.table_logits(jnp.log(target))
  assert np.max(np.abs(jax.grad(loss)(there))) < 1e-9 < 1e-2 < np.max(np.abs(jax.grad(loss)(problem.params[0])))
  assert loss(there) == pytest.approx(-np.sum(target * np.log(target)))  # the entropy of the weights, and no more

  optimizer = optax.adam(0.1)

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  first = problem.params[0], optimizer.init(problem.params[0])
  (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=600))(first)
  np.testing.assert_allclose(np.exp(problem.policy.log_probs(params)), target, atol=0.01)


def test_its_pair_terms_are_the_familys(problem):
  def pairs(pair):
    one = lambda pair_weight: losses.listwise_loss(
      jnp.stack([pair.chosen_log_prob, pair.rejected_log_prob]),
      jnp.stack([pair.ref_chosen_log_prob, pair.ref_rejected_log_prob]),
      jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.ones(2, bool),
      pair_weight=pair_weight, alpha=0.5, beta=0.2,
    )  # fmt: skip
    return one(1.0) - one(0.0)

  report = check_loss(pairs, alpha=0.5, beta=0.2, inputs="pair", problem=problem)
  assert report.ok, report


@pytest.mark.parametrize("behaviour", ["policy", "old"])
def test_regression_has_the_target_as_its_only_fixed_point(x64, problem, behaviour):
  rewards = np.isin(np.arange(15), RIGHT).astype(float)
  best = exact.solve_qempo_coherent(rewards, problem.ref_log_probs, min_reward=0.8, threshold=1.0)
  np.testing.assert_allclose(best.log_probs[RIGHT], np.log(0.8 / 3))
  # The target as the rewards of a problem whose optimum at alpha = 1, beta = 0 it is.
  loss = lambda samples: losses.target_regression_loss(samples.log_probs, samples.rewards)
  fitted = dataclasses.replace(problem, rewards=best.log_probs[None])
  report = check_loss(loss, alpha=1.0, beta=0.0, group_size=1, behaviour=behaviour, problem=fitted)
  assert report.ok, report
