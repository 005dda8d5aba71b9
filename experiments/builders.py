"""ConfigDict -> typed objects: the only file that knows both the configs and the library."""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from qempo_jax import dual_controllers
from qempo_jax import duals
from qempo_jax import optimizers
from qempo_jax import sharding
from qempo_jax import train_state
from qempo_jax import train_step
from qempo_jax.data import prompts
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models.config import ModelConfig
from qempo_jax.rewards import checked

CONSTRAINTS = ("quality", "kl")


class Policy(NamedTuple):
  """A pretrained model with its tokenizer, placed on the mesh.

  Attributes:
    config: the decoder's shape.
    params: its parameters, sharded.
    tokenizer: its tokenizer.
    stop_tokens: ids that end a response.
    mesh: the devices.
  """

  config: ModelConfig
  params: Any
  tokenizer: Any
  stop_tokens: tuple[int, ...]
  mesh: jax.sharding.Mesh


def policy(config: ConfigDict) -> Policy:
  """Loads the model that the config names."""
  mesh = sharding.make_mesh(tuple(config.compute.mesh))
  source = str(demo_model.demo_model_path()) if config.model.source == "demo" else config.model.source
  _one_of("compute.dtype", config.compute.dtype, ("float32", "bfloat16"))
  model_config, params = conversion.load(source)
  model_config = dataclasses.replace(model_config, compute_dtype=config.compute.dtype)
  params = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  tokenizer = tokenization.load_tokenizer(source)
  return Policy(model_config, params, tokenizer, tuple(tokenization.stop_token_ids(tokenizer)), mesh)


def training_rows(config: ConfigDict) -> list[prompts.Row]:
  """The prompts to train on, with their columns."""
  return prompts.load_rows(
      config.data.source, sets=tuple(config.data.sets), wordings=tuple(config.data.wordings)
  )


def reward(config: ConfigDict) -> Callable:
  """The reward function that the config names."""
  return checked.load(config.reward.function)


def objective(config: ConfigDict) -> train_step.OnlineObjective:
  """What the online step climbs."""
  o = config.objective
  _one_of("objective.entropy_gradient", o.entropy_gradient, ("score_function", "rao_blackwell"))
  _one_of("objective.baseline", o.baseline, ("leave_one_out", "group_mean"))
  return train_step.OnlineObjective(
      entropy_weight=o.entropy_weight,
      min_reward=None if o.min_reward is None else o.min_reward + o.margin,
      max_kl=o.max_kl,
      entropy_gradient=o.entropy_gradient,
      baseline=o.baseline,
      normalise=o.normalise,
      replay_weight=config.replay.weight,
      min_std=o.min_std,
      averaging=o.averaging,
  )


def optimizer_pair(config: ConfigDict) -> train_step.Optimizers:
  """The policy's AdamW and the multipliers' controller."""
  o, d = config.optimizer, config.duals
  policy_optimizer = optimizers.adamw(
      learning_rate=o.learning_rate,
      warmup_steps=o.warmup_steps,
      total_steps=config.steps,
      final_fraction=o.final_fraction,
      b1=o.b1,
      b2=o.b2,
      weight_decay=o.weight_decay,
      max_grad_norm=o.max_grad_norm,
  )
  controller = dual_controllers.pi_controller(
      proportional_gain={name: d[name].proportional_gain for name in CONSTRAINTS},
      integral_gain={name: d[name].integral_gain for name in CONSTRAINTS},
      smoothing=d.smoothing,
      delay=d.delay,
      cap=d.cap,
  )
  return train_step.Optimizers(policy_optimizer, controller)


def initial_state(config: ConfigDict, params, optimizers_pair: train_step.Optimizers):
  """The state before the first step; the policy starts as a copy of the reference."""
  dual_params = duals.init_dual_params(
      {name: config.duals[name].initial for name in CONSTRAINTS},
      parametrisation={name: config.duals[name].parametrisation for name in CONSTRAINTS},
  )
  return train_state.create(
      jax.tree.map(jax.numpy.copy, params),
      dual_params,
      jax.random.key(config.seed),
      optimizer=optimizers_pair.policy,
      dual_optimizer=optimizers_pair.dual,
  )


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise InputError(f"config.{key}={value!r} is not one of {', '.join(allowed)}")
