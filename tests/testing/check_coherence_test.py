"""check_loss on QEMPO-C: the trainer's own loss passes, and mistakes with the coherence constraint are named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import constraints
from qempo_jax import estimators
from qempo_jax import losses
from qempo_jax import methods
from qempo_jax.errors import InputError
from qempo_jax.testing import check_loss
from qempo_jax.testing import default_problem
from qempo_jax.testing import mistakes
from qempo_jax.testing.expectation import group_moments
from qempo_jax.token_stats import TokenStats

QUALITY, NU, TAU, GROUP = 2.5, 0.75, 0.0, 2
A, B = 1 / QUALITY, NU / QUALITY
check = functools.partial(check_loss, alpha=A, beta=B, threshold=TAU, group_size=GROUP)


def qempo_c(entropy_gradient, s):
  """The loss of the training step."""
  bounds = {
    "quality": constraints.reward_floor("reward", 0.9),
    "coherence": constraints.coherence_budget(None, TAU),
  }
  group = constraints.Group.on_policy({"reward": s.rewards}, s.mask, s.ref_log_probs)
  prices = methods.Prices(1.0, {"quality": QUALITY, "coherence": NU})
  method = methods.qempo_c(entropy_gradient=entropy_gradient)
  stats = TokenStats(s.token_log_probs, s.token_entropies)
  return methods.group_loss(stats, group, prices, bounds, method, replay_weight=1.0)


@pytest.mark.parametrize("gradient", ["score_function", pytest.param("rao_blackwell", marks=pytest.mark.slow)])
def test_the_trainers_own_loss_is_right(gradient):
  report = check(functools.partial(qempo_c, gradient))
  assert report.ok and report.gradient_is_right and report.stationary_is_right, str(report)
  assert report.scale == pytest.approx(QUALITY / (1 + QUALITY + NU), rel=1e-9)
  assert report.mistakes == () and report.padding == "ignored"


def _ascend(s, reward):
  shaped = jax.lax.stop_gradient(reward)
  return jnp.mean(jax.vmap(losses.policy_gradient_loss)(s.token_log_probs, advantages.leave_one_out(shaped), s.mask))


def _shaped(s, *, entropy=A, bad=B, good=0.0, reward=1.0):
  """The shaped reward with weights of its own for the entropy and for log q of unacceptable and acceptable samples."""
  coherence = jnp.where(s.rewards < TAU, bad, good) * s.ref_log_probs
  return _ascend(s, reward * s.rewards - entropy * s.log_probs + coherence)


def _token_entropy(s):
  bonus = jnp.mean(jnp.sum(jnp.where(s.mask, s.token_entropies, 0), axis=-1))
  return _shaped(s, entropy=0.0) - A * bonus


def _std(s):
  coherence = B * jnp.where(s.rewards < TAU, 1.0, 0.0) * s.ref_log_probs
  return _ascend(s, advantages.std_normalised(s.rewards, min_std=1e-6) - A * s.log_probs + coherence)


def _differentiated(s):
  """Adds log q, next to log pi, of unacceptable samples in the loss: neither has the right expected gradient."""
  return _shaped(s, bad=0.0) + B * jnp.mean(jnp.where(s.rewards < TAU, -s.ref_log_probs, 0.0))


WRONG = {
  "flipped sign: the loss": (lambda s: -_shaped(s), []),
  "flipped sign of the coherence constraint": (lambda s: _shaped(s, bad=-B), []),
  "no log q on unacceptable samples": (lambda s: _shaped(s, bad=0.0), []),
  "no log q on unacceptable samples: the": (_differentiated, []),
  "log q on every sample": (lambda s: _shaped(s, good=B), []),
  "log q on acceptable samples": (lambda s: _shaped(s, bad=0.0, good=B), []),
  "flipped sign of the entropy": (lambda s: _shaped(s, entropy=-A), []),
  "flipped sign of the reward": (lambda s: _shaped(s, reward=-1.0), []),
  "k1 entropy in the loss": (lambda s: _shaped(s, entropy=0.0), []),
  "k1 entropy": (lambda s: _shaped(s, entropy=0.0, bad=0.0), ["no log q"]),
  "other weights: it maximises E[r] + 0.4 H + 0 E[log q] + 1 E[1{r < tau} log q]": (lambda s: _shaped(s, bad=1.0), []),
  "token-only entropy": (_token_entropy, []),
  "std-normalised reward": (_std, []),
  "group mean on the reward alone": (
    lambda s: _shaped(s, reward=(GROUP - 1) / GROUP),
    [],
  ),
}


def test_every_mistake_is_named_by_its_signature():
  with jax.enable_x64(True):
    problem = default_problem()
    moments = group_moments([loss for loss, _ in WRONG.values()], problem, group_size=GROUP, behaviour="policy")
    found = np.stack([moments(params).mean for params in problem.params], axis=1)
    explain = functools.partial(mistakes.explain, problem=problem, alpha=A, beta=B, group_size=GROUP, threshold=TAU)
    for (name, (_, others)), mean in zip(WRONG.items(), found, strict=True):
      got = explain(mean.ravel())
      wanted = [name, *others]
      assert len(got) == len(wanted) and all(map(str.startswith, got, wanted)), (name, got)


@pytest.mark.parametrize("name", ["no log q on unacceptable samples", "flipped sign of the coherence constraint"])
def test_a_mistake_is_caught_from_end_to_end(name):
  report = check(WRONG[name][0])
  assert not report.ok and not report.stationary_is_right and report.mistakes[0].startswith(name), str(report)


@pytest.mark.slow
def test_off_policy_and_at_the_optimum_of_the_gated_program():
  def balance(s):
    base = jnp.where(s.rewards < TAU, s.ref_log_probs, 0.0)
    return losses.trajectory_balance_loss(s.log_probs, s.rewards, base, alpha=A, beta=B)

  assert check(balance, behaviour="old").ok
  assert not check_loss(balance, alpha=A, beta=B, behaviour="old", group_size=GROUP).ok
  entropy = lambda s: jnp.mean(
    jax.vmap(estimators.sequence_entropy_surrogate)(s.token_log_probs, s.token_entropies, s.mask)
  )
  right = lambda s: _shaped(s, entropy=0.0) - A * entropy(s)
  assert check(right).ok


def test_a_threshold_that_says_nothing_is_refused():
  with pytest.raises(InputError, match="leaves a prompt without acceptable or without unacceptable"):
    check(qempo_c, threshold=9.0)
  with pytest.raises(InputError, match="a pair has no rewards"):
    check(lambda pair: pair[0], inputs="pair")
