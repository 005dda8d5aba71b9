"""A batch in parts has the gradient, loss and metrics of the whole batch, for every objective and every loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qempo_jax import advantages
from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import methods
from qempo_jax import offline_losses
from qempo_jax import packing
from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.train import accumulation
from qempo_jax.train import offline_step
from qempo_jax.train import online_step
from qempo_jax.train import state as train_state
from qempo_jax.train.online_step import GroupBatch

MODEL = ModelConfig(24, 16, 24, 1, 2, 1, 8, 100.0, 1e-5, True)
SCORING = {"config": MODEL, "temperature": 1.0, "chunk_size": 32}
PROMPTS, LONGEST = 8, 6
# The "optimizer" keeps the gradient as its state, and moves nothing.
KEEP = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
)


def _packed(group_size):
  """Prompts with responses of very uneven lengths, the longest all in the first half of the batch."""
  rng = np.random.default_rng(0)
  prompts = [[int(token) for token in rng.integers(1, 24, 2 + row % 3)] for row in range(PROMPTS)]
  most = [LONGEST if row < PROMPTS // 2 else 2 for row in range(PROMPTS)]
  groups = [[rng.integers(1, 24, rng.integers(1, most[row] + 1)) for _ in range(group_size)] for row in range(PROMPTS)]
  lengths = np.array([[len(response) for response in group] for group in groups])
  return packing.pack_groups(prompts, groups, bucket=16), np.arange(LONGEST) < lengths[:, :, None], rng


def _state():
  params = parameters.init(jax.random.key(0), MODEL, stddev=0.3)
  dual_params = duals.init_dual_params({"quality": 3.0, "kl": 0.5}, parametrisation={"quality": "log", "kl": "linear"})
  return train_state.create(params, dual_params, jax.random.key(1), optimizer=KEEP, dual_optimizer=optax.sgd(0.1))


def _objective(gradient, baseline, normalise, max_kl=0.2):
  bounds = {"quality": constraints.reward_floor("reward", 0.5), "kl": constraints.kl_budget(max_kl)}
  method = methods.qempo_kl(entropy_gradient=gradient)
  scale = methods.grpo(beta=0.0).scale if normalise else method.scale
  method = dataclasses.replace(method, baseline=getattr(advantages, baseline), scale=scale)
  return online_step.OnlineObjective(method, bounds, replay_weight=0.7, averaging=0.9)


def _online(gradient, baseline, normalise):
  objective = _objective(gradient, baseline, normalise)
  packed, mask, rng = _packed(5)
  fresh = np.ones((PROMPTS, 5), bool)
  fresh[:, 4] = False
  fresh[2, 3] = fresh[5, 1] = False  # uneven groups too
  replayed = np.zeros_like(fresh)
  replayed[:3, 4] = True
  batch = GroupBatch(packed, mask, {"reward": rng.random((PROMPTS, 5)).astype(np.float32)}, fresh, replayed)
  reference = parameters.init(jax.random.key(2), MODEL, stddev=0.3)
  optimizers = online_step.Optimizers(KEEP, optax.sgd(0.1))

  def step(micro_batches):
    one = lambda state, batch: online_step.online_step(
      state, reference, batch, objective=objective, optimizers=optimizers, micro_batches=micro_batches, **SCORING
    )
    return jax.jit(one)(_state(), batch)

  return step


@functools.cache
def _offline(loss):
  settings = offline_losses.LossSettings(0.1, 0.5, 1.0, 0.7, 0.1, 2.0, 0.8)
  objective = offline_step.OfflineObjective(loss, (0.4, 0.3), settings, {}, 0.9)
  lists, group_size = offline_losses.LOSSES[loss].lists, offline_losses.LOSSES[loss].responses + 1
  packed, mask, rng = _packed(group_size - (not lists))
  # Close to the policy's own, so that KTO's estimate of the KL is positive and is read.
  ref_log_probs = (-6.0 * mask.sum(-1) - rng.random(mask.shape[:2])).astype(np.float32)
  chosen, rejected = np.array([[0.3, 0.7, 0.0]], np.float32), np.array([[0.0, 0.0, 1.0]], np.float32)
  alike = offline_losses.ListWeights(*(np.repeat(x, PROMPTS, axis=0) for x in (chosen, rejected, chosen + rejected)))
  weight = rng.random(PROMPTS).astype(np.float32)
  batch = offline_step.PairBatch(packed, mask, ref_log_probs, weight, alike if lists else None)

  @functools.cache
  def step(micro_batches):
    one = lambda state, batch: offline_step.offline_step(
      state, batch, objective=objective, optimizer=KEEP, micro_batches=micro_batches, **SCORING
    )
    return jax.jit(one)(_state(), batch)

  return step


def _same_in_four_parts(step):
  (whole, whole_metrics), (state, metrics) = step(1), step(4)
  size = float(optax.tree.norm(whole.opt_state))
  assert size > 1e-3
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * size)
  jax.tree.map(near, state.opt_state, whole.opt_state)
  assert metrics.keys() == whole_metrics.keys()
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
  jax.tree.map(near, state.dual_params, whole.dual_params)


@pytest.mark.parametrize(
  ("gradient", "baseline", "normalise"),
  [
    pytest.param("score_function", "leave_one_out", False, marks=pytest.mark.slow),
    pytest.param("score_function", "group_mean", True, marks=pytest.mark.slow),
    pytest.param("rao_blackwell", "leave_one_out", True, marks=pytest.mark.slow),
    pytest.param("rao_blackwell", "group_mean", False, marks=pytest.mark.slow),
  ],
)
def test_online_objectives(gradient, baseline, normalise):
  _same_in_four_parts(_online(gradient, baseline, normalise))


# KTO reads something of the whole batch; the others are means over pairs, and are marked slow.
OFFLINE = [
  pytest.param(loss, marks=() if loss == "kto" else pytest.mark.slow) for loss in sorted(offline_losses.LOSSES)
]


@pytest.mark.parametrize("loss", OFFLINE)
def test_offline_losses(loss):
  _same_in_four_parts(_offline(loss))


def test_kto_reads_the_estimate_of_the_whole_batch():
  """The estimate differs between the parts, so a part's own would show."""
  step = _offline("kto")
  _, metrics = step(1)
  assert metrics["chosen_change"] > 1  # the reference is far enough below for a positive estimate


def test_rows_keep_their_order():
  batch = {"x": np.arange(12.0).reshape(6, 2)}
  parts = accumulation.split(batch, 3)
  np.testing.assert_array_equal(parts["x"][1], [[2, 3], [8, 9]])  # rows 1 and 4
  np.testing.assert_array_equal(accumulation.join(parts, 6)["x"], batch["x"])
  doubled = accumulation.map_rows(lambda b: b["x"] * 2, batch, micro_batches=3)
  np.testing.assert_array_equal(doubled, batch["x"] * 2)


def test_prompts_that_share_a_row_stay_together():
  batch = {"row": np.arange(4), "prompt": np.arange(8)}
  parts = accumulation.split(batch, 2)
  np.testing.assert_array_equal(parts["row"], [[0, 2], [1, 3]])
  np.testing.assert_array_equal(parts["prompt"], [[0, 1, 4, 5], [2, 3, 6, 7]])
  joined = accumulation.join(parts, 4)
  np.testing.assert_array_equal(joined["row"], batch["row"])
  np.testing.assert_array_equal(joined["prompt"], batch["prompt"])


def test_half_precision_gradients_are_summed_in_single():
  params = jnp.ones((), jnp.bfloat16)
  loss = lambda params, rows: (jnp.sum(params.astype(jnp.float32) * rows), rows)
  rows = jnp.array([1.0] + [2.0**-9] * 7)
  (_, _), gradient = accumulation.value_and_grad(loss, params, rows, micro_batches=8)
  assert gradient.dtype == jnp.float32 and float(gradient) == 1 + 7 * 2.0**-9


def test_parts_that_do_not_divide_the_rows_are_refused():
  with pytest.raises(InputError, match="micro_batches=3 does not divide the batch's 8 rows"):
    _online("score_function", "leave_one_out", False)(3)


def _step(**changes):
  objective = _objective("score_function", "leave_one_out", True, **changes)
  reference = parameters.init(jax.random.key(2), MODEL, stddev=0.3)
  optimizers = online_step.Optimizers(KEEP, duals.plain_ascent(0.1))
  state = _state().replace(dual_opt_state=optimizers.dual.init(_state().dual_params))
  step = lambda state, batch: online_step.online_step(
    state, reference, batch, objective=objective, optimizers=optimizers, **SCORING
  )
  return state, jax.jit(step)


def test_where_nothing_was_scored_nothing_is_measured_and_nothing_moves():
  packed, mask, rng = _packed(5)
  rewards = {"reward": rng.random((PROMPTS, 5)).astype(np.float32)}
  everything, nothing = np.ones((PROMPTS, 5), bool), np.zeros((PROMPTS, 5), bool)
  state, step = _step()
  state, metrics = step(state, GroupBatch(packed, mask, rewards, everything, nothing))
  after, unmeasured = step(state, GroupBatch(packed, mask, rewards, nothing, everything))  # replayed ones alone
  assert np.isfinite(metrics["reward"]) and np.isnan(unmeasured["reward"]) and np.isnan(unmeasured["kl"])
  same = lambda a, b: np.testing.assert_array_equal(a, b)
  jax.tree.map(same, after.dual_params, state.dual_params)
  values = after.averages.values()
  np.testing.assert_allclose(values["reward"], state.averages.values()["reward"], rtol=1e-6)
  # Without fresh responses there is no log Z to balance replayed ones against.
  assert unmeasured["loss"] == 0 and unmeasured["grad_norm"] == 0 and unmeasured["skipped"] == 0


def test_an_average_starts_with_its_first_measurement():
  averages = train_state.Averages.create(("reward", "kl"))
  for reward, kl in ((np.nan, 1.0), (0.5, 2.0), (np.nan, 4.0)):
    averages = averages.update({"reward": jnp.float32(reward), "kl": jnp.float32(kl)}, 0.9)
  values = averages.values()
  assert values["reward"] == pytest.approx(0.5)
  assert values["kl"] == pytest.approx((0.9 * 0.1 * 2 + 0.1 * 4) / 0.19)
