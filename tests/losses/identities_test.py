"""The methods of one family are one loss, in value and in gradient; `translate` knows which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import family
from qempo_jax import losses
from qempo_jax.errors import InputError

DRAWS = 12


def _same(*functions, **ranges):
  """Values and gradients agree at random log-probs and hyper-parameters, drawn from the ranges given."""
  rng = np.random.default_rng(0)
  inputs = rng.uniform(-50, 0, (DRAWS, 4))
  hyper = {name: rng.uniform(low, high, DRAWS) for name, (low, high) in ranges.items()}
  inputs[0], inputs[1, :2] = 0, [-50, 0]

  @jax.jit
  def run(inputs, hyper):
    one = lambda f: jax.vmap(lambda x, h: jax.value_and_grad(lambda pair: f(*pair, *x[2:], **h))((x[0], x[1])))
    return [one(f)(inputs, hyper) for f in functions]

  with jax.enable_x64(True):
    first, *others = jax.device_get(run(jnp.asarray(inputs), jax.tree.map(jnp.asarray, hyper)))
  assert np.any(first[1][0]) and np.any(first[1][1])
  for other in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12), first, other)


def test_qempo_kl_is_spl_at_translated_weights():
  def translated(*x, quality, kl):
    alpha, beta = family.weights_from_multipliers(quality, kl)
    return losses.preference_loss(*x, alpha=alpha, beta=beta)

  qempo_kl = lambda *x, quality, kl: losses.qempo_kl_loss(*x, quality_multiplier=quality, kl_multiplier=kl)
  _same(qempo_kl, translated, quality=(0.05, 20), kl=(0, 20))


def test_qempo_is_spl_without_reference_is_cpo_without_nll():
  _same(
    lambda *x, alpha: losses.qempo_loss(*x[:2], alpha=alpha),
    lambda *x, alpha: losses.preference_loss(*x, alpha=alpha, beta=0.0),
    lambda *x, alpha: losses.cpo_loss(*x[:2], beta=alpha, nll_weight=0.0),
    lambda *x, alpha: losses.qempo_kl_loss(*x, quality_multiplier=1 / alpha, kl_multiplier=0.0),
    alpha=(0.01, 3),
  )


def test_dpo_is_the_boundary_of_the_family():
  _same(
    lambda *x, beta: losses.dpo_loss(*x, beta=beta),
    lambda *x, beta: losses.preference_loss(*x, alpha=beta, beta=beta),
    lambda *x, beta: losses.h_dpo_loss(*x, entropy_ratio=1.0, beta=beta),
    lambda *x, beta: losses.smoothed_dpo_loss(*x, beta=beta, label_smoothing=0.0),
    lambda *x, beta: losses.robust_dpo_loss(*x, beta=beta, label_smoothing=0.0),
    beta=(0.01, 3),
  )


def test_length_normalised_losses_agree_at_length_one():
  _same(
    lambda *x, alpha, beta: losses.length_normalised_preference_loss(*x, 1.0, 1.0, alpha=alpha, beta=beta),
    lambda *x, alpha, beta: losses.preference_loss(*x, alpha=alpha, beta=beta),
    alpha=(0.01, 3),
    beta=(0.01, 3),
  )
  _same(
    lambda *x, alpha: losses.simpo_loss(*x[:2], 1.0, 1.0, beta=alpha, margin=0.0),
    lambda *x, alpha: losses.qempo_loss(*x[:2], alpha=alpha),
    alpha=(0.01, 3),
  )
  _same(
    lambda *x, beta: losses.length_normalised_ipo_loss(*x, 1.0, 1.0, tau=beta),
    lambda *x, beta: losses.ipo_loss(*x, tau=beta),
    beta=(0.01, 3),
  )


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
  assert losses.translate(target, source, **there.hyper_parameters).hyper_parameters == pytest.approx(given_)
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
