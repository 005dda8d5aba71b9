"""The inputs of steps.npz: parameters, multipliers and averages after three updates of version 0.1.0's training steps.

The file was written by `python -m tests.golden.make_steps` at commit 3863586; `tests/train/golden_test.py` holds later
versions to it.
"""

import pathlib

import jax
import numpy as np

from qempo_jax import duals
from qempo_jax import packing
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.train import optimizers
from qempo_jax.train import state as train_state

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
  return parameters.init(jax.random.key(seed), MODEL, stddev=0.3)


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
  """Arrays of an online batch besides the responses: rewards, the second reward, both masks, behaviour log-probs."""
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
