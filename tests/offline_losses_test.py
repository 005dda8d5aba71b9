"""Losses by name: against their formulas, with weights from multipliers, smoothing and the anchor."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import family
from qempo_jax import losses
from qempo_jax import offline_losses
from qempo_jax.family import Weights
from qempo_jax.offline_losses import Example
from qempo_jax.offline_losses import ListWeights
from qempo_jax.offline_losses import LossSettings
from qempo_jax.testing import reference
from qempo_jax.testing import reference_groups

SETTINGS = LossSettings(
  label_smoothing=0.0, margin=0.3, desirable_weight=1.1, undesirable_weight=0.7, nll_weight=0.0, pair_weight=2.0,
  min_reward=0.8,
)  # fmt: skip
LISTS = {
  "chosen": [0.25, 0.75, 0.0, 0.0],
  "rejected": [0.0, 0.0, 1.0, 0.0],
  "sizes": [4.0, 2.0, 0.6, 0.0],
}  # the last is padding
WEIGHTS = Weights(jnp.asarray(0.7), jnp.asarray(0.3))


def _example(responses, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 6, responses)
  mask = np.arange(6) < lengths[:, None]
  log_probs = np.where(mask, -rng.exponential(1.0, (responses, 6)), np.nan)  # padding may hold anything
  lists = ListWeights(*map(jnp.asarray, LISTS.values())) if responses == 4 else None
  mask[3:] = False
  ref = jnp.asarray(-rng.exponential(4.0, responses))
  return Example(jnp.asarray(log_probs), jnp.asarray(mask), ref, jnp.asarray(0.4), lists)


def _of(name, seed=0):
  return _example(4 if offline_losses.LOSSES[name].lists else offline_losses.LOSSES[name].responses, seed)


def _expected(name, e):
  """The same from the NumPy formulas, or from the loss's own function where there is none."""
  pi, q = np.asarray(e.log_probs), np.asarray(e.ref_log_probs)
  n, a, b = np.asarray(e.lengths), 0.7, 0.3
  pair = (*pi[:2], *q[:2])
  if name in ("spl", "qempo_kl"):
    return reference.preference_loss(*pair, alpha=a, beta=b)
  if name == "kto":
    kto = lambda i, good: losses.kto_loss(
      pi[i], q[i], jnp.asarray(good), 0.4, beta=b, desirable_weight=1.1, undesirable_weight=0.7
    )
    return (kto(0, True) + kto(1, False)) / 2
  if name == "nll":
    return -pi[0]
  if name == "listwise":
    return reference_groups.listwise_loss(
      pi, q, LISTS["chosen"], LISTS["rejected"], np.arange(4) < 3, pair_weight=2.0, alpha=a, beta=b
    )
  if name == "regression":  # R shared by the answers of the log; (1 - R) / q(not A) of the reference's probability
    targets = [np.log(0.8 / 4), np.log(0.8 / 2), np.log(0.2 / 0.6) + q[2]]
    return reference_groups.target_regression_loss(pi[:3], targets)
  return {
    "qempo": lambda: reference.qempo_loss(*pi, alpha=a),
    "dpo": lambda: reference.dpo_loss(*pair, beta=b),
    "smoothed_dpo": lambda: reference.smoothed_dpo_loss(*pair, beta=b, label_smoothing=0.0),
    "robust_dpo": lambda: reference.robust_dpo_loss(*pair, beta=b, label_smoothing=0.0),
    "h_dpo": lambda: reference.h_dpo_loss(*pair, entropy_ratio=a / b, beta=b),
    "ipo": lambda: reference.ipo_loss(*pair, tau=b),
    "cpo": lambda: reference.cpo_loss(*pi, beta=a, nll_weight=0.0),
    "simpo": lambda: reference.simpo_loss(*pi, *n, beta=a, margin=0.3),
    "length_normalised_spl": lambda: reference.preference_loss(*(np.array(pair) / [*n, *n]), alpha=a, beta=b),
    "length_normalised_ipo": lambda: reference.ipo_loss(*(np.array(pair) / [*n, *n]), tau=b),
  }[name]()


@pytest.mark.parametrize("name", offline_losses.LOSSES)
def test_a_named_loss_is_its_formula(x64, name):
  weights = offline_losses.effective_weights(name, WEIGHTS)
  for seed in range(3):
    example = _of(name, seed)
    got = offline_losses.example_loss(name, example, weights, SETTINGS)
    np.testing.assert_allclose(got, _expected(name, example), rtol=1e-6)


def test_every_offline_loss_of_the_library_has_a_name():
  source = inspect.getsource(offline_losses)
  online = "policy_gradient token_entropy grpo gspo ppo sequence_clip trajectory bradley_terry".split()
  offline = [n for n in losses.__all__ if n.endswith("_loss") and not any(word in n for word in online)]
  others = {"qempo_kl_loss", "h_dpo_loss"}  # the same functions of (alpha, beta) as preference_loss, which serves them
  assert len(offline) > 10
  for name in set(offline) - others:
    assert f"losses.{name}(" in source, name


@pytest.mark.parametrize("name", ["spl", "qempo_kl", "h_dpo", "length_normalised_spl"])
def test_losses_with_both_weights_follow_the_multipliers(name):
  got = offline_losses.weights_from_multipliers(name, jnp.asarray(4.0), jnp.asarray(0.5))
  assert got == family.weights_from_multipliers(4.0, 0.5) and got.alpha == pytest.approx(0.375)


def test_losses_with_one_weight_take_it_from_the_multipliers():
  by = lambda name, quality, kl: offline_losses.weights_from_multipliers(name, jnp.asarray(quality), jnp.asarray(kl))
  assert by("dpo", 4.0, 1.0) == (0.25, 0.25)  # RLHF with a floor: beta = 1 / lambda
  assert by("qempo", 4.0, 1.0) == (0.25, 0.0)  # no reference, no mu
  assert np.isfinite(by("qempo", 0.0, 0.0).alpha)


@pytest.mark.parametrize("name", ["spl", "dpo", "ipo", "simpo", "h_dpo"])
def test_smoothing_mixes_in_the_flipped_pair(x64, name):
  example, weights = _example(2), offline_losses.effective_weights(name, WEIGHTS)
  smoothed = SETTINGS.__class__(**{**vars(SETTINGS), "label_smoothing": 0.2})
  one = lambda e, settings: offline_losses.example_loss(name, e, weights, settings)
  want = 0.8 * one(example, SETTINGS) + 0.2 * one(example.flipped(), SETTINGS)
  np.testing.assert_allclose(one(example, smoothed), want, rtol=1e-12)
  if name == "dpo":
    same = offline_losses.example_loss("smoothed_dpo", example, weights, smoothed)
    np.testing.assert_allclose(same, want, rtol=1e-12)


def test_smoothing_gives_the_margin_a_finite_optimum():
  """At m = log((1 - e) / e) the gradient is zero, and beyond it pulls back."""
  smoothed = SETTINGS.__class__(**{**vars(SETTINGS), "label_smoothing": 0.1})
  mask = jnp.ones((2, 1), bool)

  def loss(gap, settings):
    example = Example(jnp.stack([gap, jnp.zeros(())])[:, None], mask, jnp.zeros(2), jnp.zeros(()))
    return offline_losses.example_loss("spl", example, Weights(1.0, 0.0), settings)

  slope = lambda gap, settings: float(jax.grad(loss)(jnp.asarray(gap), settings))
  best = float(np.log(9))
  assert slope(best, smoothed) == pytest.approx(0, abs=1e-6)
  assert slope(best + 1, smoothed) > 0.01 and slope(best + 1, SETTINGS) < 0


def test_the_anchor_adds_the_chosen_nll(x64):
  example = _example(2)
  anchored = SETTINGS.__class__(**{**vars(SETTINGS), "nll_weight": 0.2})
  got = offline_losses.example_loss("spl", example, WEIGHTS, anchored)
  want = offline_losses.example_loss("spl", example, WEIGHTS, SETTINGS) - 0.2 * example.log_probs[0]
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("name", ["spl", "dpo", "qempo", "simpo", "length_normalised_spl"])
def test_the_margin_is_the_one_the_loss_acts_on(x64, name):
  example, weights = _example(2), offline_losses.effective_weights(name, WEIGHTS)
  margin = offline_losses.implicit_margin(name, example, weights)
  shift = SETTINGS.margin if name == "simpo" else 0.0
  loss = offline_losses.example_loss(name, example, weights, SETTINGS)
  np.testing.assert_allclose(loss, -reference.log_sigmoid(margin - shift), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name, loss in offline_losses.LOSSES.items() if loss.needs_reference])
def test_a_kl_multiplier_at_zero_leaves_every_loss_a_gradient(name):
  weights = offline_losses.weights_from_multipliers(name, jnp.float32(2.0), jnp.float32(0.0))
  mask = jnp.ones((3, 2), bool)
  settings = offline_losses.LossSettings(0.1, 0.5, 1.0, 1.0, 0.0, 2.0, 0.8)
  lists = offline_losses.ListWeights(*(jnp.array(value[:3]) for value in LISTS.values()))

  def loss(log_probs):
    example = offline_losses.Example(log_probs, mask, jnp.array([-3.0, -2.0, -4.0]), jnp.float32(0.0), lists)
    return offline_losses.example_loss(name, example, weights, settings)

  value, gradient = jax.value_and_grad(loss)(-jnp.arange(1.0, 7.0).reshape(3, 2))
  assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-5
  if not offline_losses.acts_with_beta_alone(name):
    assert weights.beta == 0  # no pull to the reference, and alpha acts
