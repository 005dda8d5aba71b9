"""Other methods' transformations inside the online step's loss, and the similarity that one of them needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import diversity_rewards
from qempo_jax import group_transforms
from qempo_jax import train_step
from qempo_jax.errors import InputError
from qempo_jax.group_transforms import Transform
from qempo_jax.token_stats import TokenStats

GROUP, LENGTH = 5, 3
OBJECTIVE = train_step.OnlineObjective(
    entropy_weight=0.0,
    min_reward=None,
    max_kl=None,
    entropy_gradient="score_function",
    baseline="group_mean",
    normalise=False,
    replay_weight=1.0,
    min_std=1e-2,
    averaging=0.9,
)
QUALITY, KL = 4.0, 1.0


def _group():
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 4, (GROUP, LENGTH))
  mask = np.ones((GROUP, LENGTH), bool)
  fresh = jnp.ones(GROUP, bool)
  similarities = jnp.asarray(group_transforms.token_similarities(tokens, mask))
  rewards = jnp.asarray([1.0, 1.0, 0.2, 0.0, 1.0])
  group = train_step.GroupBatch(None, jnp.asarray(mask), rewards, fresh, ~fresh, None, similarities)
  return group, jnp.log(jnp.asarray(rng.uniform(0.2, 0.8, (GROUP, LENGTH)))), jnp.asarray(rng.normal(-3, 1, GROUP))


def _advantages(objective):
  """The advantages that a loss used: minus G times its gradient in the tokens' log-probs."""
  group, log_probs, ref = _group()
  multipliers = {"quality": jnp.asarray(QUALITY), "kl": jnp.asarray(KL)}
  loss = lambda lp: train_step.group_loss(TokenStats(lp, jnp.zeros_like(lp)), ref, group, multipliers, objective)
  gradient = -GROUP * jax.grad(loss)(log_probs)
  np.testing.assert_allclose(gradient, np.tile(gradient[:, :1], LENGTH), rtol=1e-4, atol=1e-5)
  return np.asarray(gradient[:, 0])


def _with(name, strength=0.0, **changes):
  return _advantages(dataclasses.replace(OBJECTIVE, transform=Transform(name, strength, 1.0), **changes))


def _plain(rewards, beta=KL / QUALITY):
  _, log_probs, ref = _group()
  shaped = QUALITY * (rewards - beta * (log_probs.sum(-1) - ref)) / (QUALITY + KL)
  return np.asarray(shaped - shaped.mean())


def test_mara_is_rlhf_on_its_rewards():
  group, _, ref = _group()
  augmented = diversity_rewards.mara_rewards(group.rewards, ref, min_reward=1.0, beta=KL / QUALITY)
  np.testing.assert_allclose(_with("mara"), _plain(augmented), rtol=1e-3, atol=1e-4)
  assert np.abs(_with("mara") - _with("none")).max() > 0.05


def test_ucpo_without_strength_is_plain_and_keeps_the_sum_of_correct_advantages():
  group, *_ = _group()
  np.testing.assert_allclose(_with("ucpo"), _plain(group.rewards), rtol=1e-3, atol=1e-4)
  changed, correct = _with("ucpo", 1.0) - _with("none"), np.asarray(group.rewards >= 1)
  assert np.abs(changed[correct]).max() > 0.01
  np.testing.assert_allclose([changed[correct].sum(), *changed[~correct]], 0, atol=1e-4)


@pytest.mark.parametrize("normalise", [False, True])
def test_setpo_adds_its_credit_in_units_of_the_normalised_advantage(normalise):
  group, *_ = _group()
  credit = diversity_rewards.setpo_rewards(group.similarities)
  changed = _with("setpo", 2.0, normalise=normalise) - _with("none", normalise=normalise)
  np.testing.assert_allclose(changed, 2 * np.asarray(credit), rtol=1e-3, atol=1e-4)


def test_setpo_needs_similarities():
  with pytest.raises(InputError, match="similarities"):
    group_transforms.advantage_change(Transform("setpo", 1.0, 1.0), *[jnp.ones(2)] * 3, None, jnp.ones(2, bool))


def test_the_bonus_pushes_token_entropies_up():
  group, log_probs, ref = _group()
  multipliers = {"quality": jnp.asarray(QUALITY), "kl": jnp.asarray(KL)}
  objective = dataclasses.replace(OBJECTIVE, token_entropy_weight=0.5)
  loss = lambda entropy: train_step.group_loss(TokenStats(log_probs, entropy), ref, group, multipliers, objective)
  np.testing.assert_allclose(jax.grad(loss)(jnp.ones((GROUP, LENGTH))), -0.5 / GROUP, rtol=1e-5)


def test_token_similarities_by_hand():
  tokens = np.array([[1, 2, 9], [1, 2, 9], [2, 1, 9], [3, 3, 9], [0, 0, 0]])
  mask = np.array([[1, 1, 0]] * 4 + [[0, 0, 0]], bool)
  found = group_transforms.token_similarities(tokens, mask)
  # (1, 2): tokens 1 and 2 and the pair 12, of norm sqrt 3; (2, 1) shares the tokens alone.
  np.testing.assert_allclose(found[0], [1, 1, 2 / 3, 0, 0], atol=1e-6)
  np.testing.assert_allclose(found[3], [0, 0, 0, 1, 0], atol=1e-6)
  assert found[4, 4] == 0
