"""Writes steps.npz: parameters, multipliers and averages after three updates of each training step of version 0.1.0.

  python -m tests.golden.make_steps

It needs version 0.1.0's `train_step`, `offline_step` and `reward_step` (commit ad23c00); `tests/train/golden_test.py`
holds the steps of later versions to the file. The batches are made here for both.
"""

import pathlib

import jax
import numpy as np

from qempo_jax import duals
from qempo_jax import optimizers
from qempo_jax import packing
from qempo_jax import train_state
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig

PATH = pathlib.Path(__file__).with_name("steps.npz")
MODEL = ModelConfig(24, 16, 24, 1, 2, 1, 8, 100.0, 1e-5, True)
SCORING = {"config": MODEL, "temperature": 0.9, "chunk_size": 32}
PROMPTS, GROUP, LONGEST = 4, 5, 6
ADAMW = optimizers.adamw(
  learning_rate=1e-2, warmup_steps=0, total_steps=10, final_fraction=1.0, b1=0.9, b2=0.95, weight_decay=0.0,
  max_grad_norm=1.0,
)  # fmt: skip
CONTROLLER = duals.pi_controller(
  proportional_gain={"quality": 0.3, "kl": 0.1, "polite": 0.2}, integral_gain={"quality": 0.1, "kl": 0.05, "polite": 0.1},
  smoothing=0.7, delay=0, cap=100.0,
)  # fmt: skip


def params(seed=0):
  """A decoder of one block."""
  return transformer.init(jax.random.key(seed), MODEL, stddev=0.3)


def state(trained=None, averaged=train_state.AVERAGED):
  """A state with three multipliers."""
  dual_params = duals.init_dual_params(
    {"quality": 3.0, "kl": 0.5, "polite": 1.0}, parametrisation={"quality": "log", "kl": "linear", "polite": "log"}
  )
  return train_state.create(
    params() if trained is None else trained, dual_params, jax.random.key(1), optimizer=ADAMW,
    dual_optimizer=CONTROLLER, averaged=averaged,
  )  # fmt: skip


def packed(group_size, seed=0):
  """(packed groups, mask [P, G, T], the random numbers that go on)."""
  rng = np.random.default_rng(seed)
  prompts = [[int(token) for token in rng.integers(1, 24, 2 + row % 3)] for row in range(PROMPTS)]
  groups = [[rng.integers(1, 24, rng.integers(1, LONGEST + 1)) for _ in range(group_size)] for _ in range(PROMPTS)]
  lengths = np.array([[len(response) for response in group] for group in groups])
  return packing.pack_groups(prompts, groups, bucket=16), np.arange(LONGEST) < lengths[:, :, None], rng


def online_arrays():
  """What an online batch holds besides the responses: rewards, the second reward, both masks, behaviour log-probs."""
  _, mask, rng = packed(GROUP)
  fresh = np.ones((PROMPTS, GROUP), bool)
  fresh[:, -1] = fresh[2, 3] = False
  replayed = np.zeros_like(fresh)
  replayed[:3, -1] = True
  polite = rng.random((PROMPTS, GROUP)).astype(np.float32)
  polite[~fresh] = polite[0, 0] = np.nan
  rewards = rng.random((PROMPTS, GROUP)).astype(np.float32)
  behaviour = (-3.0 * mask.sum(-1) + rng.normal(size=rewards.shape)).astype(np.float32)
  return rewards, polite, fresh, replayed, behaviour


def pair_ref_log_probs(mask):
  """The reference's log-probs of pairs, near the policy's own."""
  return (-3.0 * mask.sum(-1) - np.random.default_rng(5).random(mask.shape[:2])).astype(np.float32)


def reward_pairs():
  """(prompts, pairs, margins) of the reward model's batch."""
  rng = np.random.default_rng(3)
  ids = lambda low, high: [int(token) for token in rng.integers(1, 24, rng.integers(low, high))]
  return [ids(2, 6) for _ in range(3)], [(ids(1, 7), ids(1, 7)) for _ in range(3)], list(rng.random(3))


def summary(name, after, metrics) -> dict[str, np.ndarray]:
  """The leaves that the file keeps: parameters in one vector, multipliers, averages, metrics."""
  flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])
  found = {f"{name}/params": flat(after.params), f"{name}/duals": flat(after.dual_params)}
  found |= {f"{name}/average/{key}": value for key, value in after.averages.values().items()}
  found |= {f"{name}/metric/{key}": value for key, value in metrics.items()}
  return {key: np.asarray(value, np.float32) for key, value in found.items()}


def main() -> None:
  """Computes and writes the three."""
  from qempo_jax import offline_losses
  from qempo_jax import offline_step
  from qempo_jax import reward_step
  from qempo_jax import train_step
  from qempo_jax.models import reward_head

  def three(step, start):
    step = jax.jit(step)
    for _ in range(3):
      start, metrics = step(start)
    return start, metrics

  rewards, polite, fresh, replayed, behaviour = online_arrays()
  rows, mask, _ = packed(GROUP)
  batch = train_step.GroupBatch(rows, mask, rewards, fresh, replayed, polite[..., None], None, behaviour)
  objective = train_step.OnlineObjective(
    entropy_weight=1.0, min_reward=0.8, max_kl=0.5, entropy_gradient="rao_blackwell", baseline="leave_one_out",
    normalise=False, replay_weight=0.7, min_std=1e-2, averaging=0.9, reward_floors=(("polite", 0.6),), max_importance=2.0,
  )  # fmt: skip
  pair = train_step.Optimizers(ADAMW, CONTROLLER)
  online = lambda s: train_step.online_step(s, params(2), batch, objective=objective, optimizers=pair, **SCORING)
  found = summary("online", *three(online, state(averaged=(*train_state.AVERAGED, "reward/polite"))))

  rows, mask, _ = packed(2)
  settings = offline_losses.LossSettings(0.1, 0.5, 1.0, 0.7, 0.1)
  objective = offline_step.OfflineObjective("qempo_kl", None, settings, None, None, 0.9)
  batch = offline_step.PairBatch(rows, mask, pair_ref_log_probs(mask))
  offline = lambda s: offline_step.offline_step(s, batch, objective=objective, optimizer=ADAMW, **SCORING)
  found |= summary("offline", *three(offline, state()))

  batch = reward_step.pack_pairs(*reward_pairs(), bucket=8, rows=4)
  trained, frozen = reward_head.split(params() | {"score": 0.1 * np.ones((16, 1), np.float32)}, MODEL, "all")
  reward = lambda s: reward_step.reward_step(s, frozen, batch, config=MODEL, optimizer=ADAMW, centring_weight=0.1)
  found |= summary("reward", *three(reward, state(trained)))
  np.savez_compressed(PATH, **found)


if __name__ == "__main__":
  main()
