"""check_loss passes what is right and names what is wrong, one known mistake at a time."""

import functools

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
from qempo_jax.testing.pair_mistakes import explain_pairs

A, B = 0.5, 0.2
GROUP = 2
check = functools.partial(check_loss, alpha=A, beta=B, group_size=GROUP)
check_pair = functools.partial(check_loss, alpha=A, beta=B, inputs="pair")


def mostly_slow(names, *default):
  """The default suite checks two from end to end, and all their signatures in one program."""
  return [pytest.param(name, marks=[pytest.mark.slow] * (name not in default)) for name in names]


def named(moments, explain):
  """The mistakes that each of several losses looks like."""
  with jax.enable_x64(True):
    problem = default_problem()
    moments = moments(problem)
    found = np.stack([moments(params).mean for params in problem.params], axis=1)
    return [explain(mean.ravel(), problem, alpha=A, beta=B) for mean in found]


def _shaped(s, log_probs=None):
  log_probs = s.log_probs if log_probs is None else log_probs
  return advantages.shaped_rewards(s.rewards, log_probs, s.ref_log_probs, alpha=A, beta=B)


def _policy_gradient(advantage, s):
  return jnp.mean(jax.vmap(losses.policy_gradient_loss)(s.token_log_probs, advantage, s.mask))


def _entropy(s):
  return jnp.mean(jax.vmap(estimators.sequence_entropy_surrogate)(s.token_log_probs, s.token_entropies, s.mask))


def _kl(s):
  return jnp.mean(jax.vmap(estimators.sequence_kl_surrogate)(s.token_log_probs, s.token_kls, s.mask))


def _quality(s):
  return _policy_gradient(advantages.leave_one_out(s.rewards), s)


def _k3(s):
  return jnp.mean(estimators.kl_values(s.log_probs, s.ref_log_probs).k3)


def _balance(s):
  return losses.trajectory_balance_loss(s.log_probs, s.rewards, s.ref_log_probs, alpha=A, beta=B)


def _lagrangian(s):  # the multipliers of alpha = 0.5, beta = 0.2
  weights = dict(quality_multiplier=10 / 3, kl_multiplier=2 / 3, entropy_weight=1.0)
  return advantages.lagrangian_rewards(s.rewards, s.log_probs, s.ref_log_probs, **weights)


def _std(x):
  return advantages.std_normalised(x, min_std=1e-6)


def _no_stop(s):
  return s.rewards - A * s.log_probs + B * s.ref_log_probs


def _sums(x, s, per=1):
  return jnp.mean(jnp.sum(jnp.where(s.mask, x, 0.0), axis=-1) / per)


def _k3_tokens(s):
  return estimators.kl_values(s.token_log_probs, s.ref_token_log_probs).k3


def _ppo(advantage, s):
  clip = dict(clip_low=0.2, clip_high=0.2)
  old = jax.lax.stop_gradient(s.token_log_probs)
  rows = jax.vmap(lambda *x: losses.ppo_clip_loss(*x, **clip))
  return jnp.mean(rows(s.token_log_probs, old, advantage, s.mask))


def _group_tokens(advantage, s):
  return -jnp.sum(jax.lax.stop_gradient(advantage)[:, None] * jnp.where(s.mask, s.token_log_probs, 0.0)) / jnp.sum(
    s.mask
  )


def _quality_mean(s):
  return _policy_gradient(advantages.group_mean(s.rewards), s)


def _quality_std(s):
  return _policy_gradient(_std(s.rewards), s)


RIGHT = {  # loss, the multiple of grad J it ascends
  "leave-one-out": (lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s)), s), 1.0),
  "group mean": (
    lambda s: _policy_gradient(advantages.group_mean(_shaped(s)), s),
    (GROUP - 1) / GROUP,
  ),
  "no baseline": (lambda s: _policy_gradient(_shaped(s), s), 1.0),
  "multiplied by the mask": (
    lambda s: -jnp.mean(advantages.leave_one_out(_shaped(s)) * jnp.sum(s.token_log_probs * s.mask, axis=-1)),
    1.0,
  ),
  "PPO, clipped": (lambda s: _ppo(advantages.leave_one_out(_shaped(s)), s), 1.0),
  "trajectory balance": (_balance, 2 / A * (GROUP - 1) / GROUP),
  "Rao-Blackwell": (lambda s: _quality(s) - (A - B) * _entropy(s) + B * _kl(s), 1.0),
  "k1 in the reward": (
    lambda s: (
      _policy_gradient(
        advantages.leave_one_out(s.rewards - B * jax.lax.stop_gradient(s.log_probs - s.ref_log_probs)), s
      )
      - (A - B) * _entropy(s)
    ),
    1.0,
  ),
  "k2 in the loss": (
    lambda s: _quality(s) - (A - B) * _entropy(s) + B * jnp.mean(estimators.kl_values(s.log_probs, s.ref_log_probs).k2),
    1.0,
  ),
  "k1 of constant log-probs": (lambda s: _policy_gradient(_shaped(s), s) + 3 * jnp.mean(s.ref_log_probs), 1.0),
  "score weights": (loss_of_score_weights(lambda s: advantages.leave_one_out(_shaped(s))), 1.0),
  "lagrangian": (lambda s: _policy_gradient(_lagrangian(s), s), (10 / 3) / 5),
}


@pytest.mark.parametrize("name", mostly_slow(RIGHT, "multiplied by the mask", "Rao-Blackwell"))
def test_right_losses_pass_with_their_scale(name):
  loss, scale = RIGHT[name]
  report = check(loss)
  assert report.ok and report.gradient_is_right and report.stationary_is_right, str(report)
  assert report.scale == pytest.approx(scale, rel=1e-9)
  assert report.mistakes == () and str(report).startswith("OK")
  assert report.padding == ("NaN spreads" if name == "multiplied by the mask" else "ignored")
  if name == "Rao-Blackwell":  # exact token entropies have the lower variance
    assert report.variance < report.reference_variance


WRONG = {
  "k1 entropy in the loss": lambda s: _quality(s) + (A - B) * jnp.mean(s.log_probs) + B * _kl(s),
  "k3 in the loss": lambda s: _quality(s) - (A - B) * _entropy(s) + B * _k3(s),
  "k3 per token in the loss": lambda s: _quality(s) - (A - B) * _entropy(s) + B * _sums(_k3_tokens(s), s),
  "token-only entropy": lambda s: (
    _policy_gradient(advantages.leave_one_out(s.rewards + B * s.ref_log_probs), s)
    - A * jnp.mean(jnp.sum(s.token_entropies, axis=-1))
  ),
  "std-normalised shaped reward": lambda s: _policy_gradient(_std(_shaped(s)), s),
  "std-normalised reward": lambda s: _policy_gradient(
    _std(s.rewards) + advantages.leave_one_out(_shaped(s) - s.rewards), s
  ),
  "length-normalised policy gradient": lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s)) / s.lengths, s),
  "stale log-probs": lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s, s.old_log_probs)), s),
}


K1_ENTROPY, K1_KL, K3_TOKEN = "k1 entropy in the loss", "k1 in the loss", "k3 per token in the loss"
OTHER_WRONG = {  # loss, the mistakes named; also two at once, and under other baselines
  "two k1": (lambda s: _quality(s) + A * jnp.mean(s.log_probs) - B * jnp.mean(s.ref_log_probs), [K1_ENTROPY, K1_KL]),
  "group mean, k3": (
    lambda s: (
      _policy_gradient(advantages.group_mean(s.rewards), s) - (A - B) * _entropy(s) + B * _sums(_k3_tokens(s), s)
    ),
    [K3_TOKEN],
  ),
  "PPO, group mean, k3": (
    lambda s: _ppo(advantages.group_mean(s.rewards), s) - (A - B) * _entropy(s) + B * _sums(_k3_tokens(s), s),
    [K3_TOKEN],
  ),
  "std, k3": (
    lambda s: _quality_std(s) - (A - B) * _entropy(s) + B * _sums(_k3_tokens(s), s),
    ["std-normalised reward", K3_TOKEN],
  ),
  "std, token-only entropy": (
    lambda s: _quality_std(s) - A * _sums(s.token_entropies, s) - B * jnp.mean(s.ref_log_probs),
    ["std-normalised reward", K1_KL, "token-only entropy"],
  ),
  "group mean on the reward alone": (
    lambda s: _quality_mean(s) - (A - B) * _entropy(s) + B * _kl(s),
    ["group mean on the reward alone"],
  ),
  "GRPO": (
    lambda s: (
      _policy_gradient(_std(s.rewards) / s.lengths, s) - (A - B) * _entropy(s) + B * _sums(_k3_tokens(s), s, s.lengths)
    ),
    ["std-normalised reward", "length-normalised", "k3 in the loss as a mean over tokens"],
  ),
  "token mean over the group": (
    lambda s: _group_tokens(advantages.leave_one_out(_shaped(s)), s),
    ["token mean over the group"],
  ),
  "entropy per token": (
    lambda s: (
      _policy_gradient(advantages.leave_one_out(s.rewards + B * s.ref_log_probs), s)
      - A * _sums(s.token_entropies, s, s.lengths)
    ),
    ["entropy per token"],
  ),
  "forgotten stop_gradient": (lambda s: -jnp.mean(_no_stop(s) * s.log_probs), ["forgotten stop_gradient"]),
  "forgotten stop_gradient, group mean": (
    lambda s: -jnp.mean((_no_stop(s) - jnp.mean(_no_stop(s))) * s.log_probs),
    ["forgotten stop_gradient"],
  ),
  "flipped": (lambda s: -_policy_gradient(advantages.group_mean(_shaped(s)), s), ["flipped sign: the loss"]),
  "flipped, k3": (
    lambda s: -(_quality(s) - (A - B) * _entropy(s) + B * _k3(s)),
    ["flipped sign: the loss", "k3 in the loss:"],
  ),
  "flipped entropy": (lambda s: _quality(s) + (A - B) * _entropy(s) + B * _kl(s), ["flipped sign of the entropy"]),
  "flipped KL": (lambda s: _quality(s) - (A - B) * _entropy(s) - B * _kl(s), ["flipped sign of the KL"]),
  "flipped reward": (lambda s: -_quality(s) - (A - B) * _entropy(s) + B * _kl(s), ["flipped sign of the reward"]),
  "k2 per token": (
    lambda s: (
      _quality(s)
      - (A - B) * _entropy(s)
      + B * _sums(estimators.kl_values(s.token_log_probs, s.ref_token_log_probs).k2, s)
    ),
    ["k2 or the exact KL per token"],
  ),
  "k3 in the reward": (
    lambda s: (
      _policy_gradient(advantages.group_mean(s.rewards - B * estimators.kl_values(s.log_probs, s.ref_log_probs).k3), s)
      * GROUP
      / (GROUP - 1)
      - (A - B) * _entropy(s)
    ),
    ["k3 in the reward"],
  ),
  "k2 in the reward": (
    lambda s: (
      _policy_gradient(s.rewards - B * estimators.kl_values(s.log_probs, s.ref_log_probs).k2, s) - (A - B) * _entropy(s)
    ),
    ["k2 in the reward"],
  ),
  "exchanged": (
    lambda s: _policy_gradient(s.rewards - B * s.log_probs + A * s.ref_log_probs, s),
    ["alpha and beta exchanged"],
  ),
  "other weights": (
    lambda s: _policy_gradient(s.rewards - 2 * s.log_probs + B * s.ref_log_probs, s),
    ["other weights: it maximises E[r] + 2 H + 0.2 E[log q]"],
  ),
  "no reward": (lambda s: -(A - B) * _entropy(s) + B * _kl(s), ["no reward"]),
  "no gradient": (lambda s: 0.0 * jnp.sum(s.log_probs), ["no gradient"]),
  "unknown": (lambda s: _policy_gradient(jnp.square(_shaped(s)), s), []),
}

# A weight 1 / |y| on a baselined advantage still vanishes where the mean shaped reward is constant.
STATIONARY = {"length-normalised policy gradient"}


def test_every_known_mistake_has_its_signature():
  losses_ = [*WRONG.values(), *(loss for loss, _ in OTHER_WRONG.values())]
  moments = lambda problem: group_moments(losses_, problem, group_size=GROUP, behaviour="policy")
  found = named(moments, functools.partial(mistakes.explain, group_size=GROUP))
  wanted = {name: [name] for name in WRONG} | {name: names for name, (_, names) in OTHER_WRONG.items()}
  for (name, names), got in zip(wanted.items(), found, strict=True):
    assert len(got) == len(names) and all(map(str.startswith, got, names)), (name, got)


@pytest.mark.parametrize("name", mostly_slow(WRONG, "k3 in the loss", "length-normalised policy gradient"))
def test_known_mistakes_are_caught_by_name(name):
  report = check(WRONG[name])
  assert not report.ok and not report.gradient_is_right, str(report)
  assert report.stationary_is_right == (name in STATIONARY)
  assert any(mistake.startswith(name) for mistake in report.mistakes), str(report)
  assert "NOT OK" in str(report) and name in str(report)


def _everywhere(s):
  return s._replace(mask=jnp.ones_like(s.mask))


MASKLESS = {
  "policy gradient": (lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s)), _everywhere(s)), []),
  "entropy": (lambda s: _quality(s) - (A - B) * _entropy(_everywhere(s)) + B * _kl(s), []),
  "beside others": (
    lambda s: _quality_mean(_everywhere(s)) + (A - B) * jnp.mean(s.log_probs) + B * _kl(s),
    [K1_ENTROPY, "group mean on the reward alone"],
  ),
}


@pytest.mark.parametrize("name", mostly_slow(MASKLESS, "beside others"))
def test_a_forgotten_mask_is_caught_and_named(name):
  loss, others = MASKLESS[name]
  report = check(loss)
  assert not report.ok and report.padding == "counts", str(report)
  assert [m.split(":")[0] for m in report.mistakes] == ["mask forgotten", *others]


def test_a_loss_of_nan_is_named():
  no_floor = lambda x: (x - jnp.mean(x)) / jnp.std(x)
  report = check(lambda s: _policy_gradient(no_floor(s.rewards), s))
  assert not report.ok and report.mistakes == (mistakes.NAN,) and 0 < report.finite < 1
  assert "finite with probability 0." in str(report)
  assert check_pair(lambda p: jnp.sqrt(-1 - jnp.square(p[0] - p[1]))).mistakes == (mistakes.NAN,)


@pytest.mark.parametrize(
  "loss, words",
  [
    (lambda s: s.log_probs, r"an array of shape \(2,\): return one scalar"),
    (lambda s: (jnp.mean(s.log_probs), {}), "returned a tuple"),
    (lambda s: None, "returned a NoneType"),
    (lambda s: jnp.sum(s.mask), "returned int"),
  ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss, words):
  with pytest.raises(InputError, match=words):
    check(loss)


def test_off_policy():
  assert check(_balance, behaviour="old").ok
  free = dict(clip_low=jnp.inf, clip_high=jnp.inf)

  def importance(loss):
    rows = jax.vmap(lambda *x: loss(*x, **free))
    return lambda s: jnp.mean(rows(s.token_log_probs, s.old_token_log_probs, _shaped(s), s.mask))

  assert check(importance(losses.sequence_clip_loss), behaviour="old").gradient_is_right
  assert not check(importance(losses.ppo_clip_loss), behaviour="old").gradient_is_right


@pytest.mark.slow
def test_off_policy_mistakes_are_named():
  flipped = check(lambda s: -_balance(s), behaviour="old")
  assert not flipped.ok and flipped.mistakes == (mistakes.FLIPPED,)
  # Without importance weights the gradient is another, and yet zero at the optimum, where the shaped reward is constant.
  unweighted = check(RIGHT["leave-one-out"][0], behaviour="old")
  assert unweighted.ok and unweighted.stationary_is_right and not unweighted.gradient_is_right
  missing = check(RIGHT["no baseline"][0], behaviour="old").mistakes  # not zero there without a baseline
  assert len(missing) == 1 and missing[0].startswith("importance weights are missing")


def test_right_pair_loss_passes():
  report = check_pair(lambda p: losses.preference_loss(*p[:4], alpha=A, beta=B))
  assert report.ok and report.gradient_is_right is None and report.variance > 0
  flipped = check_pair(lambda p: -losses.preference_loss(*p[:4], alpha=A, beta=B))
  assert not flipped.ok and flipped.stationary_is_right and flipped.mistakes == (mistakes.FLIPPED,)


WRONG_PAIRS = {
  "length-normalised pair loss": lambda p: losses.length_normalised_preference_loss(*p, alpha=A, beta=B),
  "chosen and rejected exchanged": lambda p: losses.preference_loss(p[1], p[0], p[3], p[2], alpha=A, beta=B),
  "the reference is left out": lambda p: losses.qempo_loss(*p[:2], alpha=A),
  "alpha taken for beta": lambda p: losses.dpo_loss(*p[:4], beta=A),
  "alpha and beta exchanged": lambda p: losses.preference_loss(*p[:4], alpha=B, beta=A),
  "no gradient": lambda p: 0.0 * p[0],
}


def test_every_known_mistake_with_pairs_has_its_signature():
  found = named(lambda problem: pair_moments(list(WRONG_PAIRS.values()), problem), explain_pairs)
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
  assert check_loss(lambda p: losses.qempo_loss(*p[:2], alpha=A), alpha=A, beta=0.0, inputs="pair").ok


def test_single_precision_losses_pass():
  report = check(lambda s: _policy_gradient(advantages.leave_one_out(_shaped(s)), jax.tree.map(_single, s)))
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
