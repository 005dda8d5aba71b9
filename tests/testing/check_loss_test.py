"""check_loss passes what is right and names what is wrong, one known mistake at a time."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import estimators
from qempo_jax import losses
from qempo_jax.errors import InputError
from qempo_jax.testing import check_loss
from qempo_jax.testing import default_problem
from qempo_jax.testing import loss_of_score_weights
from qempo_jax.testing import mistakes
from qempo_jax.testing.expectation import group_moments
from qempo_jax.testing.expectation import pair_moments

matches = importlib.import_module("qempo_jax.testing.check_loss")._matches
A, B = 0.5, 0.2
GROUP = 2
check = functools.partial(check_loss, alpha=A, beta=B, group_size=GROUP)
check_pair = functools.partial(check_loss, alpha=A, beta=B, inputs="pair")


def mostly_slow(names, *default):
  """The default suite checks two from end to end, and all their signatures in one program."""
  return [pytest.param(name, marks=[pytest.mark.slow] * (name not in default)) for name in names]


def named(moments, signatures):
  """The mistake that each of several losses looks like."""
  with jax.enable_x64(True):
    problem = default_problem()
    found = np.stack([moments(problem)(params).mean for params in problem.params], axis=1)
    return [matches(jnp.asarray(mean.ravel()), signatures(problem), problem, 1e-4) for mean in found]


def _shaped(s, log_probs=None):
  log_probs = s.log_probs if log_probs is None else log_probs
  return advantages.shaped_rewards(s.rewards, log_probs, s.ref_log_probs, alpha=A, beta=B)


def _policy_gradient(advantage, s):
  return jnp.mean(jax.vmap(losses.policy_gradient_loss)(s.token_log_probs, advantage, s.mask))


def _entropy(s):
  return jnp.mean(
    jax.vmap(estimators.sequence_entropy_surrogate)(s.token_log_probs, s.token_entropies, s.mask)
  )


def _kl(s):
  return jnp.mean(
    jax.vmap(estimators.sequence_kl_surrogate)(s.token_log_probs, s.token_kls, s.mask)
  )


def _quality(s):
  return _policy_gradient(advantages.leave_one_out(s.rewards), s)


def _k3(s):
  return jnp.mean(estimators.kl_values(s.log_probs, s.ref_log_probs).k3)


def _k3_per_token(s):
  k3 = estimators.kl_values(s.token_log_probs, s.ref_token_log_probs).k3
  return jnp.mean(jnp.sum(jnp.where(s.mask, k3, 0.0), axis=-1))


def _balance(s):
  return losses.trajectory_balance_loss(s.log_probs, s.rewards, s.ref_log_probs, alpha=A, beta=B)


def _lagrangian(s):  # the multipliers of alpha = 0.5, beta = 0.2
  weights = dict(quality_multiplier=10 / 3, kl_multiplier=2 / 3, entropy_weight=1.0)
  return advantages.lagrangian_rewards(s.rewards, s.log_probs, s.ref_log_probs, **weights)


def _std(x):
  return advantages.std_normalised(x, min_std=1e-6)


RIGHT = {  # loss, the multiple of grad J it ascends
  "leave-one-out": (lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s)), s), 1.0),
  "group mean": (
    lambda s: _policy_gradient(advantages.group_mean(_shaped(s)), s),
    (GROUP - 1) / GROUP,
  ),
  "trajectory balance": (_balance, 2 / A * (GROUP - 1) / GROUP),
  "Rao-Blackwell": (lambda s: _quality(s) - (A - B) * _entropy(s) + B * _kl(s), 1.0),
  "score weights": (loss_of_score_weights(lambda s: advantages.leave_one_out(_shaped(s))), 1.0),
  "lagrangian": (lambda s: _policy_gradient(_lagrangian(s), s), (10 / 3) / 5),
}


@pytest.mark.parametrize("name", mostly_slow(RIGHT, "leave-one-out", "Rao-Blackwell"))
def test_right_losses_pass_with_their_scale(name):
  loss, scale = RIGHT[name]
  report = check(loss)
  assert report.ok and report.gradient_is_right and report.stationary_is_right, str(report)
  assert report.scale == pytest.approx(scale, rel=1e-9)
  assert report.mistakes == () and str(report).startswith("OK")
  if name == "Rao-Blackwell":  # exact token entropies have the lower variance
    assert report.variance < report.reference_variance


WRONG = {
  "k1 entropy in the loss": lambda s: _quality(s) + (A - B) * jnp.mean(s.log_probs) + B * _kl(s),
  "k3 in the loss": lambda s: _quality(s) - (A - B) * _entropy(s) + B * _k3(s),
  "k3 per token in the loss": lambda s: _quality(s) - (A - B) * _entropy(s) + B * _k3_per_token(s),
  "token-only entropy": lambda s: (
    _policy_gradient(advantages.leave_one_out(s.rewards + B * s.ref_log_probs), s)
    - A * jnp.mean(jnp.sum(s.token_entropies, axis=-1))
  ),
  "std-normalised shaped reward": lambda s: _policy_gradient(_std(_shaped(s)), s),
  "std-normalised reward": lambda s: _policy_gradient(
    _std(s.rewards) + advantages.leave_one_out(_shaped(s) - s.rewards), s
  ),
  "length-normalised policy gradient": lambda s: _policy_gradient(
    advantages.leave_one_out(_shaped(s)) / s.lengths, s
  ),
  "stale log-probs": lambda s: _policy_gradient(
    advantages.leave_one_out(_shaped(s, s.old_log_probs)), s
  ),
}


# A weight 1 / |y| on a baselined advantage still vanishes where the mean shaped reward is constant.
STATIONARY = {"length-normalised policy gradient"}


def test_every_known_mistake_has_its_signature():
  losses_ = list(WRONG.values())
  moments = functools.cache(lambda problem: group_moments(losses_, problem, group_size=GROUP, behaviour="policy"))
  found = named(moments, lambda problem: mistakes.group_signatures(problem, alpha=A, beta=B, group_size=GROUP))
  for name, names in zip(WRONG, found, strict=True):
    assert any(mistake.startswith(name) for mistake in names), (name, names)


@pytest.mark.parametrize("name", mostly_slow(WRONG, "k3 in the loss", "length-normalised policy gradient"))
def test_known_mistakes_are_caught_by_name(name):
  report = check(WRONG[name])
  assert not report.ok and not report.gradient_is_right, str(report)
  assert report.stationary_is_right == (name in STATIONARY)
  assert any(mistake.startswith(name) for mistake in report.mistakes), str(report)
  assert "NOT OK" in str(report) and name in str(report)


def test_two_mistakes_at_once_are_both_named():
  report = check(lambda s: _quality(s) + A * jnp.mean(s.log_probs) - B * jnp.mean(s.ref_log_probs))
  assert [m.split(":")[0] for m in report.mistakes] == ["k1 entropy in the loss", "k1 in the loss"]


def test_an_unknown_mistake_is_wrong_without_a_name():
  report = check(lambda s: _policy_gradient(jnp.square(_shaped(s)), s))
  assert not report.ok and report.mistakes == ()


def test_a_loss_without_gradient_is_not_ok():
  report = check(lambda s: 0.0 * jnp.sum(s.log_probs))
  assert not report.ok and not report.stationary_is_right


def test_off_policy():
  assert check(_balance, behaviour="old").ok
  free = dict(clip_low=jnp.inf, clip_high=jnp.inf)

  def importance(loss):
    rows = jax.vmap(lambda *x: loss(*x, **free))
    return lambda s: jnp.mean(rows(s.token_log_probs, s.old_token_log_probs, _shaped(s), s.mask))

  assert check(importance(losses.sequence_clip_loss), behaviour="old").gradient_is_right
  assert not check(importance(losses.ppo_clip_loss), behaviour="old").gradient_is_right


def test_right_pair_loss_passes():
  report = check_pair(lambda p: losses.preference_loss(*p[:4], alpha=A, beta=B))
  assert report.ok and report.gradient_is_right is None and report.variance > 0


WRONG_PAIRS = {
  "length-normalised pair loss": lambda p: losses.length_normalised_preference_loss(*p, alpha=A, beta=B),
  "chosen and rejected exchanged": lambda p: losses.preference_loss(p[1], p[0], p[3], p[2], alpha=A, beta=B),
  "the reference is left out": lambda p: losses.qempo_loss(*p[:2], alpha=A),
  "alpha taken for beta": lambda p: losses.dpo_loss(*p[:4], beta=A),
}


def test_every_known_mistake_with_pairs_has_its_signature():
  moments = functools.cache(lambda problem: pair_moments(list(WRONG_PAIRS.values()), problem))
  found = named(moments, lambda problem: mistakes.pair_signatures(problem, alpha=A, beta=B))
  for name, names in zip(WRONG_PAIRS, found, strict=True):
    assert any(mistake.startswith(name) for mistake in names), (name, names)


@pytest.mark.parametrize("name", mostly_slow(WRONG_PAIRS, "alpha taken for beta"))
def test_wrong_pair_losses_are_named(name):
  report = check_pair(WRONG_PAIRS[name])
  assert not report.ok
  assert any(mistake.startswith(name) for mistake in report.mistakes), str(report)


OTHER_PAIRS = {
  "ipo": lambda p: losses.ipo_loss(*p[:4], tau=A),
  "simpo": lambda p: losses.simpo_loss(p[0], p[1], p[4], p[5], beta=A, margin=0.1),
}


@pytest.mark.parametrize("name", mostly_slow(OTHER_PAIRS, "ipo"))
def test_other_preference_losses_miss_the_optimum(name):
  assert not check_pair(OTHER_PAIRS[name]).ok


def test_qempo_is_right_where_beta_is_zero():
  assert check_loss(
    lambda p: losses.qempo_loss(*p[:2], alpha=A), alpha=A, beta=0.0, inputs="pair"
  ).ok


def test_single_precision_losses_pass():
  report = check(
    lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s)), jax.tree.map(_single, s))
  )
  assert report.ok and report.gradient_error > 0


def _single(x):
  return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def test_unknown_words_are_refused():
  with pytest.raises(InputError):
    check(_balance, inputs="pairs")
  with pytest.raises(InputError):
    check(_balance, behaviour="offline")


def test_precision_outside_is_left_as_it_was():
  default_problem()
  assert jnp.ones(1).dtype == jnp.float32
