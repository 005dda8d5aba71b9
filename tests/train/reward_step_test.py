"""The reward-model step: packed == apart, gradients, frozen parts, and eight devices == one."""

import functools

import jax
import numpy as np
import pytest

from configs import base
from experiments import build
from experiments import plan
from experiments.batches import reward_pairs
from qempo_jax import duals
from qempo_jax import sharding
from qempo_jax.losses.reward_model import bradley_terry_loss
from qempo_jax.models import parameters
from qempo_jax.models import reward_head
from qempo_jax.models.config import ModelConfig
from qempo_jax.train import online_step
from qempo_jax.train import reward_step
from qempo_jax.train import state as train_state
from tests import donation
from tests.golden.make_steps import ADAMW

MODEL = ModelConfig(48, 32, 64, 3, 4, 2, 8, 100.0, 1e-5, True, windows=(None, 4, None))


def _params():
  params = parameters.init(jax.random.key(0), MODEL, stddev=0.3)
  return params | {"score": jax.random.normal(jax.random.key(1), (32, 1))}


def _pairs(count=6):
  rng = np.random.default_rng(0)
  ids = lambda low, high: [int(token) for token in rng.integers(1, 48, rng.integers(low, high))]
  return [ids(2, 6) for _ in range(count)], [(ids(1, 7), ids(1, 7)) for _ in range(count)], list(rng.random(count))


def _batch(rows=8):
  prompts, responses, margins = _pairs()
  return reward_step.pack_pairs(prompts, responses, margins, bucket=8, rows=rows)


def _state(trained):
  dual_params = duals.init_dual_params({"quality": 1.0, "kl": 1.0}, parametrisation={"quality": "log", "kl": "linear"})
  return train_state.create(trained, dual_params, jax.random.key(2), optimizer=ADAMW, dual_optimizer=ADAMW)


@jax.jit
def _step(state, frozen, batch):
  return reward_step.reward_step(state, frozen, batch, config=MODEL, optimizer=ADAMW, centring_weight=0.1)


@functools.cache
def _apart():
  """Each response after its prompt in a row of its own: [N, 2]."""
  prompts, responses, _ = _pairs()
  texts = [[*prompt, *response] for prompt, pair in zip(prompts, responses) for response in pair]
  rows, valid = (np.zeros((len(texts), 16), dtype) for dtype in (np.int32, bool))
  for row, text in enumerate(texts):
    rows[row, : len(text)], valid[row, : len(text)] = text, True
  score = jax.jit(lambda params: reward_head.score_rows(params, MODEL, rows, valid, reward_head.last_valid(valid)))
  return np.asarray(score(_params())).reshape(-1, 2)


@functools.cache
def _scorer(name):
  return jax.jit(functools.partial(getattr(reward_step, name), config=MODEL))


@pytest.mark.parametrize("trainable", ["all", "head", "last:1", pytest.param("last:2", marks=pytest.mark.slow)])
def test_packed_pairs_score_as_each_text_apart(trainable):
  params = _params()
  trained, frozen = reward_head.split(params, MODEL, trainable)
  batch, apart = _batch(), _apart()
  scores = np.asarray(_scorer("pair_scores")(trained, frozen, batch))
  np.testing.assert_allclose(scores[:6], apart, atol=1e-4)
  assert np.isfinite(scores).all() and np.ptp(apart) > 0.1
  if frozen:
    kept = batch.replace(hidden=_scorer("frozen_hidden")(frozen, batch))
    with_kept = _scorer("pair_scores")(trained, frozen, kept)
    np.testing.assert_allclose(with_kept[:6], apart, atol=1e-4)


def test_the_loss_and_metrics_are_those_of_the_formula():
  scores, margins = _apart(), np.array(_pairs()[2])
  gaps = scores[:, 0] - scores[:, 1]
  expected = np.mean(np.log1p(np.exp(-(gaps - margins))) + 0.1 * scores.sum(axis=1) ** 2)
  _, metrics = _step(_state(_params()), {}, _batch())
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
  np.testing.assert_allclose(metrics["margin"], gaps.mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(gaps > 0), rtol=1e-6)


def test_gradients_are_those_of_the_whole_model():
  params, batch, trainable = _params(), _batch(6), "last:1"
  trained, frozen = reward_head.split(params, MODEL, trainable)

  def loss(part, rest):
    scores = reward_step.pair_scores(part, rest, batch, config=MODEL)
    one = functools.partial(bradley_terry_loss, centring_weight=0.1)
    return jax.vmap(lambda pair, margin: one(pair[0], pair[1], margin))(scores, batch.margin).mean()

  gradient = jax.jit(jax.grad(loss))
  of_whole = reward_head.split(gradient(params, {}), MODEL, trainable)[0]
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  jax.tree.map(near, gradient(trained, frozen), of_whole)


def test_steps_learn_the_pairs():
  state = _state(_params())
  for _ in range(20):
    state, metrics = _step(state, {}, _batch())
  assert metrics["accuracy"] == 1.0 and int(state.step) == 20


@pytest.mark.parametrize(
  "shape", [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1, 1), (1, 8, 1), (2, 1, 2, 2)))]
)
def test_sharded_equals_single_device(shape):
  """The loop's own compiled step, which takes its state's memory over."""

  def run(mesh):
    config = base.get_config()
    config.reward_model.pairs_per_step, config.reward_model.centring_weight = 8, 0.1
    trained, frozen = reward_head.split(_params(), MODEL, "last:2")
    place = lambda tree: jax.device_put(tree, sharding.tree_shardings(tree, mesh, reward_head.RULES))
    state, frozen, rows = place(_state(trained)), place(frozen), jax.device_put(_batch(), sharding.batch_sharding(mesh))
    model, shardings = plan.Policy(MODEL, None, None, (0,), mesh), jax.tree.map(lambda leaf: leaf.sharding, state)
    of_run = build.reward_plan(config, model)._replace(optimizers=online_step.Optimizers(ADAMW, ADAMW))
    step = reward_pairs.compile_step(of_run, shardings, frozen)
    with donation.checked(state):
      after, metrics = step(state, frozen, rows)
    return jax.device_get((after.opt_state[1][0].mu, metrics)), after

  single = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  (expected, expected_metrics), _ = run(single)
  (moments, metrics), state = run(sharding.make_mesh(shape))
  if shape[1] > 1:
    assert not state.params["layers"]["gate"].sharding.is_fully_replicated
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
  jax.tree.map(near, moments, expected)
  jax.tree.map(near, metrics, expected_metrics)
