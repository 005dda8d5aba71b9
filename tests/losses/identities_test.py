"""The methods of one family are one loss, in value and in gradient; `translate` knows which."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from qempo_jax import family
from qempo_jax import losses
from qempo_jax.errors import InputError

log_prob = st.floats(-50, 0)
weight = st.floats(0.01, 3)
multiplier = st.floats(0.05, 20)
FOUR = st.tuples(log_prob, log_prob, log_prob, log_prob)


def _same(a, b, inputs):
  with jax.enable_x64(True):
    for f, g in [(a, b), (jax.grad(a, argnums=(0, 1)), jax.grad(b, argnums=(0, 1)))]:
      np.testing.assert_allclose(f(*inputs), g(*inputs), rtol=1e-9, atol=1e-12)


@settings(max_examples=12, deadline=None)
@given(FOUR, multiplier, st.floats(0, 20))
def test_qempo_kl_is_spl_at_translated_weights(inputs, quality, kl):
  with jax.enable_x64(True):
    alpha, beta = family.weights_from_multipliers(quality, kl)
  _same(
    lambda *x: losses.qempo_kl_loss(*x, quality_multiplier=quality, kl_multiplier=kl),
    lambda *x: losses.preference_loss(*x, alpha=alpha, beta=beta),
    inputs,
  )


@settings(max_examples=12, deadline=None)
@given(FOUR, weight)
def test_qempo_is_spl_without_reference_is_cpo_without_nll(inputs, alpha):
  qempo = lambda *x: losses.qempo_loss(*x[:2], alpha=alpha)
  _same(qempo, lambda *x: losses.preference_loss(*x, alpha=alpha, beta=0.0), inputs)
  _same(qempo, lambda *x: losses.cpo_loss(*x[:2], beta=alpha, nll_weight=0.0), inputs)
  _same(
    qempo,
    lambda *x: losses.qempo_kl_loss(*x, quality_multiplier=1 / alpha, kl_multiplier=0.0),
    inputs,
  )


@settings(max_examples=12, deadline=None)
@given(FOUR, weight)
def test_dpo_is_the_boundary_of_the_family(inputs, beta):
  dpo = lambda *x: losses.dpo_loss(*x, beta=beta)
  _same(dpo, lambda *x: losses.preference_loss(*x, alpha=beta, beta=beta), inputs)
  _same(dpo, lambda *x: losses.h_dpo_loss(*x, entropy_ratio=1.0, beta=beta), inputs)
  _same(dpo, lambda *x: losses.smoothed_dpo_loss(*x, beta=beta, label_smoothing=0.0), inputs)
  _same(dpo, lambda *x: losses.robust_dpo_loss(*x, beta=beta, label_smoothing=0.0), inputs)


@settings(max_examples=12, deadline=None)
@given(FOUR, weight, weight)
def test_length_normalised_losses_agree_at_length_one(inputs, alpha, beta):
  _same(
    lambda *x: losses.length_normalised_preference_loss(*x, 1.0, 1.0, alpha=alpha, beta=beta),
    lambda *x: losses.preference_loss(*x, alpha=alpha, beta=beta),
    inputs,
  )
  _same(
    lambda *x: losses.simpo_loss(*x[:2], 1.0, 1.0, beta=alpha, margin=0.0),
    lambda *x: losses.qempo_loss(*x[:2], alpha=alpha),
    inputs,
  )
  _same(
    lambda *x: losses.length_normalised_ipo_loss(*x, 1.0, 1.0, tau=beta),
    lambda *x: losses.ipo_loss(*x, tau=beta),
    inputs,
  )


@settings(max_examples=12, deadline=None)
@given(FOUR, weight, weight, st.floats(-20, 20))
def test_pairs_feel_only_differences_and_the_scale_of_the_weights(inputs, alpha, beta, shift):
  loss = lambda *x: losses.preference_loss(*x, alpha=alpha, beta=beta)
  _same(loss, lambda *x: loss(x[0] + shift, x[1] + shift, x[2] - shift, x[3] - shift), inputs)
  halved = [x / 2 for x in inputs]
  doubled = losses.preference_loss(*halved, alpha=2 * alpha, beta=2 * beta)
  np.testing.assert_allclose(doubled, loss(*inputs), rtol=1e-4, atol=1e-5)


def test_smoothing_bounds_the_margin():
  e, beta = 0.1, 0.5
  loss = lambda w: losses.smoothed_dpo_loss(w, 0.0, 0.0, 0.0, beta=beta, label_smoothing=e)
  best = np.log((1 - e) / e) / beta
  np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-6)


_EQUIVALENT = [
  ("dpo", dict(beta=0.1), "spl", dict(alpha=0.1, beta=0.1)),
  ("dpo", dict(beta=0.1), "h_dpo", dict(entropy_ratio=1.0, beta=0.1)),
  ("rlhf", dict(beta=0.1), "dpo", dict(beta=0.1)),
  ("spl", dict(alpha=0.5, beta=0.25), "qempo_kl", dict(quality_multiplier=4.0, kl_multiplier=1.0)),
  ("qempo", dict(alpha=0.2), "qempo_kl", dict(quality_multiplier=5.0, kl_multiplier=0.0)),
  ("qempo", dict(alpha=0.2), "cpo", dict(beta=0.2, nll_weight=0.0)),
  ("h_dpo", dict(entropy_ratio=2.0, beta=0.1), "preference", dict(alpha=0.2, beta=0.1)),
]


@pytest.mark.parametrize(("source", "given_", "target", "want"), _EQUIVALENT)
def test_translate_there_and_back(source, given_, target, want):
  there = losses.translate(source, target, **given_)
  assert there.hyper_parameters == pytest.approx(want)
  assert losses.translate(
    target, source, **there.hyper_parameters
  ).hyper_parameters == pytest.approx(given_)
  assert str(there).startswith(f"{source}(") and f" = {target}(" in str(there)


@pytest.mark.parametrize(
  ("source", "given_", "target", "needs"),
  [
    ("dpo", dict(beta=0.1), "qempo", "beta = 0"),
    ("dpo", dict(beta=0.1), "qempo_kl", "infinite"),
    ("spl", dict(alpha=0.2, beta=0.1), "dpo", "alpha = beta"),
    ("qempo", dict(alpha=0.2), "h_dpo", "other than 0"),
    ("cpo", dict(beta=0.1, nll_weight=1.0), "qempo", "nll_weight=0"),
    ("qempo_kl", dict(quality_multiplier=0.0, kl_multiplier=1.0), "spl", "positive"),
    ("dpo", dict(alpha=0.1), "spl", "dpo takes beta"),
    ("simpo", dict(beta=0.1), "spl", "unknown method"),
  ],
)
def test_translate_says_why_it_cannot(source, given_, target, needs):
  with pytest.raises(InputError, match=needs):
    losses.translate(source, target, **given_)


def test_translate_matches_family(x64):
  there = losses.translate("qempo_kl", "spl", quality_multiplier=3.0, kl_multiplier=0.7)
  np.testing.assert_allclose(
    (there.alpha, there.beta), family.weights_from_multipliers(3.0, 0.7), rtol=1e-12
  )
