"""Three updates of each training step end where version 0.1.0's did: parameters, multipliers, averages and metrics."""

import functools

import jax
import numpy as np
import pytest

from qempo_jax import constraints
from qempo_jax import methods
from qempo_jax import offline_losses
from qempo_jax.models import reward_head
from qempo_jax.train import offline_step
from qempo_jax.train import online_step
from qempo_jax.train import reward_step
from tests.golden import make_steps as golden

# Averages and metrics by their new names, where these changed.
RENAMED = {
  "average/quality_multiplier": "average/multiplier/quality",
  "average/kl_multiplier": "average/multiplier/kl",
  "average/reward/polite": "average/polite",
  "metric/reward/polite": "metric/dual/polite/value",
}


def _online():
  rewards, polite, fresh, replayed, behaviour = golden.online_arrays()
  rows, mask, _ = golden.packed(golden.GROUP)
  scores = {"reward": rewards, "polite": polite}
  batch = online_step.GroupBatch(rows, mask, scores, fresh, replayed, behaviour_log_probs=behaviour)
  bounds = {"quality": constraints.reward_floor("reward", 0.8), "kl": constraints.kl_budget(0.5)}
  bounds["polite"] = constraints.reward_floor("polite", 0.6)
  method = methods.qempo_kl(entropy_gradient="rao_blackwell")
  objective = online_step.OnlineObjective(method, bounds, replay_weight=0.7, averaging=0.9, max_importance=2.0)
  optimizers = online_step.Optimizers(golden.ADAMW, golden.CONTROLLER)
  step = lambda state: online_step.online_step(
    state, golden.params(2), batch, objective=objective, optimizers=optimizers, **golden.SCORING
  )
  return step, golden.state(averaged=("reward", "kl", "entropy", "polite"))


def _offline():
  rows, mask, _ = golden.packed(2)
  settings = offline_losses.LossSettings(0.1, 0.5, 1.0, 0.7, 0.1)
  objective = offline_step.OfflineObjective("qempo_kl", None, settings, {}, 0.9)
  batch = offline_step.PairBatch(rows, mask, golden.pair_ref_log_probs(mask))
  step = functools.partial(
    offline_step.offline_step, batch=batch, objective=objective, optimizer=golden.ADAMW, **golden.SCORING
  )
  return step, golden.state()


def _reward():
  batch = reward_step.pack_pairs(*golden.reward_pairs(), bucket=8, rows=4)
  start = golden.params() | {"score": 0.1 * np.ones((16, 1), np.float32)}
  trained, frozen = reward_head.split(start, golden.MODEL, "all")
  step = lambda state: reward_step.reward_step(
    state, frozen, batch, config=golden.MODEL, optimizer=golden.ADAMW, centring_weight=0.1
  )
  return step, golden.state(trained)


@pytest.mark.parametrize("name", ["online", "offline", "reward"])
def test_three_updates_of_version_0_1_0(name):
  step, state = {"online": _online, "offline": _offline, "reward": _reward}[name]()
  step = jax.jit(step)
  for _ in range(3):
    state, metrics = step(state)
  found = golden.summary(name, state, metrics)
  stored = {key: value for key, value in np.load(golden.PATH).items() if key.startswith(f"{name}/")}
  assert stored
  for key, value in stored.items():
    new = key.partition("/")[2]
    if new in ("average/reward/polite",) and name != "online":
      continue
    np.testing.assert_allclose(found[f"{name}/{RENAMED.get(new, new)}"], value, rtol=1e-4, atol=2e-5, err_msg=key)
