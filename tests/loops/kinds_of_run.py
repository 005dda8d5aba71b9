"""One small run of each kind, that a process can be killed in: online, stale, on pairs, of a reward model, a frontier.

Each function is one life of a run in a folder; the one that gets through writes final.npz, whose arrays two runs of one
kind must share bit by bit. Files that all runs of a kind read are in the folder above.
"""

from collections.abc import Callable
import contextlib
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from experiments import build
from experiments import loop
from experiments import train_reward_model
from experiments.configured import policy as build_policy
from experiments.measure import frontier_runs
from experiments.run import workdir as workdirs
from qempo_jax.evaluation import sentence_encoder
from qempo_jax.models import export
from qempo_jax.models import parameters
from tests.loops import offline_toy
from tests.loops import reward_model_test
from tests.loops import toy


def _ends(folder: pathlib.Path, tree) -> None:
  """Writes the leaves of a tree to final.npz."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  np.savez(folder / "final.npz", **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})


def _trained(config, folder: pathlib.Path, notes) -> None:
  workdirs.open_workdir(folder, config)
  state = loop.train(build.run(config, toy.policy(), check=False), folder, notes)
  _ends(folder, state.replace(rng=jax.random.key_data(state.rng)))


def online(config, folder: pathlib.Path, notes) -> None:
  """With replay and every constraint."""
  _trained(config, folder, notes)


def stale(config, folder: pathlib.Path, notes) -> None:
  """Samples drawn one update early, which a checkpoint keeps."""
  config.sampling.stale_steps = 1
  _trained(config, folder, notes)


def offline(config, folder: pathlib.Path, notes) -> None:
  """On pairs, with multipliers from measurements."""
  pairs = offline_toy.config(folder.parent, count=32, scale=4.0)
  config.offline, config.data.source, config.replay.size = pairs.offline, pairs.data.source, 0
  config.offline.loss, config.offline.pairs_per_step, config.offline.measure_every = "qempo_kl", 4, 2
  config.reward.function = pairs.reward.function  # pairs have no names
  _trained(config, folder, notes)


def reward_model(config, folder: pathlib.Path, notes) -> None:
  """From training to results.json and the exported model."""
  source = folder.parent / "tiny"
  if not source.exists():
    params = parameters.init(jax.random.key(0), reward_model_test.MODEL, stddev=0.3)
    export.export_model(source, params, reward_model_test.MODEL, tokenizer=reward_model_test.tokenizer())
  steps, checkpoint = config.steps, config.checkpoint
  config = reward_model_test.make_config(folder.parent, source)
  config.steps, config.checkpoint, config.compute.mesh = steps, checkpoint, (1, 1, 1)
  workdirs.open_workdir(folder, config)
  results = train_reward_model.train(build.reward_run(config)[0], folder, notes)
  figures = {name: value for name, value in results["heldout"].items() if isinstance(value, float)}
  _ends(folder, figures | {"weights": np.fromfile(folder / "model" / "model.safetensors", np.uint8)})


def frontier(config, folder: pathlib.Path, notes) -> None:
  """Two floors by two seeds, each run trained with its own checkpoints, sampled and measured once."""
  config.evaluation.splits, config.evaluation.max_prompts = (config.data.source,), 2
  config.evaluation.samples_per_prompt, config.evaluation.prompts_per_batch = 2, 2
  whole = ConfigDict({"runner": "online", "methods": ("low", "high"), "seeds": (0, 1), "points": {}})
  for method in whole.methods:
    whole[method], whole.points[method] = config.copy_and_resolve_references(), ((),)
    whole[method].constraints.quality.bound = {"low": 0.5, "high": 0.6}[method]
    whole[method].steps = config.steps // 4
  frontier_runs.Display = lambda *args, **options: contextlib.nullcontext(notes)
  build_policy.policy = lambda config: toy.policy()
  sentence_encoder.load = lambda: lambda texts: np.ones((len(texts), 1))
  workdirs.open_workdir(folder, whole)
  frontier_runs.run_online(whole, folder, frontier_runs.missing(whole, folder))
  found = frontier_runs.read(whole, folder)
  figures = {f"{place}": one["figures"] for place, one in enumerate(found)}
  _ends(folder, jax.tree.map(np.asarray, figures, is_leaf=lambda leaf: isinstance(leaf, list)))


KINDS: dict[str, Callable] = {one.__name__: one for one in (online, stale, offline, reward_model, frontier)}
