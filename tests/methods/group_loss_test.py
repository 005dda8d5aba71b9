"""The public group loss equals version 0.1.0's in value and both gradients, under all 448 combinations of its options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import constraints
from qempo_jax import importance
from qempo_jax import methods
from qempo_jax.token_stats import TokenStats
from tests.golden import make_group_losses as golden

TRANSFORMS = {
  "none": methods.Method(),
  "mara": methods.mara(beta=0.0, good_reward=golden.GOOD),
  "ucpo": methods.ucpo(tau=golden.STRENGTH["ucpo"], good_reward=golden.GOOD),
  "setpo": methods.setpo(weight=golden.STRENGTH["setpo"]),
}


def _method(transform, gradient, baseline, normalise, bonus):
  """The old options as one method."""
  grpo = methods.grpo(beta=0.0, min_std=golden.MIN_STD, token_entropy_weight=golden.BONUS)
  entropy = methods.qempo(entropy_gradient=gradient).entropy
  return dataclasses.replace(
    TRANSFORMS[transform], entropy=entropy, baseline=getattr(advantages, baseline),
    scale=grpo.scale if normalise else methods.Method().scale, extra=grpo.extra if bonus else methods.Method().extra,
  )  # fmt: skip


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 31])
def test_combinations_of_version_0_1_0(every):
  stored = np.load(golden.PATH)
  x = {name: jnp.asarray(value) for name, value in golden.inputs().items()}
  bounds = {"quality": constraints.reward_floor("reward", 0.8), "kl": constraints.kl_budget(1.0)}
  combinations = golden.combinations()
  traced = {}
  for place, (transform, gradient, baseline, normalise, weight, floor, stale, bonus) in enumerate(combinations):
    if place % every:
      continue
    kept = bounds | ({"polite": constraints.reward_floor("polite", 0.5)} if floor else {})
    key = (transform, gradient, baseline, normalise, floor, bonus)

    def loss(log_prob, entropy, weights, h, kept=kept, key=key):
      group = constraints.Group(
        {"reward": x["reward"], "polite": x["polite"]}, x["ref_log_probs"], x["mask"], x["fresh"], x["replayed"],
        jnp.where(x["fresh"], weights, 1.0), {"similarities": x["similarities"]},
      )  # fmt: skip
      method = _method(key[0], key[1], key[2], key[3], key[5])
      prices = methods.Prices(h, golden.MULTIPLIERS)
      return methods.group_loss(
        TokenStats(log_prob, entropy), group, prices, kept, method, replay_weight=golden.REPLAY_WEIGHT
      )

    if key not in traced:
      traced[key] = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    stale_weights = importance.weights(
      jnp.sum(x["log_prob"], -1), x["behaviour_log_probs"], max_weight=golden.MAX_IMPORTANCE
    )
    value, found = traced[key](x["log_prob"], x["entropy"], stale_weights if stale else jnp.ones(golden.GROUP), weight)
    close = dict(rtol=2e-5, atol=2e-6, err_msg=str(combinations[place]))
    np.testing.assert_allclose(value, stored["values"][place], **close)
    np.testing.assert_allclose(np.stack(found), stored["gradients"][place], **close)
  assert len(combinations) == len(stored["values"]) == 448
