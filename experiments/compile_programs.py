"""The programs that a config's run compiles, with abstract arguments: its own jitted functions, and no weights."""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments import builders
from experiments import offline_builders
from experiments.loops import offline
from experiments.loops import online
from experiments.loops import runs
from experiments.loops import sampling
from qempo_jax import offline_losses
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.models import presets
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.offline_step import PairBatch
from qempo_jax.sampling import sampler
from qempo_jax.token_stats import TokenStats
from qempo_jax.train_step import GroupBatch
from qempo_jax.types import PackedGroups
from qempo_jax.types import PromptBatch


class Program(NamedTuple):
  """Something to compile.

  Attributes:
    name: of the program.
    jitted: the run's own jitted function.
    arguments: abstract, with their shardings.
    options: keyword arguments.
    parts: params, optimizer and reference among the arguments.
    trips: iterations of its loop that may end early.
  """

  name: str
  jitted: Any
  arguments: tuple
  options: dict[str, Any]
  parts: dict[str, Any]
  trips: int


def programs(config, devices) -> list[Program]:
  """The steps and the sampler that the config's run uses, in the largest shapes they may have.

  Args:
    config: a complete config; `model.source` names a preset, or is "demo".
    devices: what to compile for.

  Returns:
    The programs.
  """
  mesh = sharding.make_mesh(tuple(config.compute.mesh), devices=devices)
  model = dataclasses.replace(
      model_config(config.model.source),
      compute_dtype=config.compute.dtype,
      attention=config.compute.attention,
      remat=config.compute.remat,
      kv_cache=config.compute.kv_cache,
  )
  create = lambda: transformer.init(jax.random.key(0), model, dtype=jnp.dtype(config.model.dtype))
  params = _placed(jax.eval_shape(create), mesh, sharding.PARAM_RULES)
  return of_policy(config, builders.Policy(model, params, None, (0,), mesh))


def of_policy(config, policy: builders.Policy) -> list[Program]:
  """The same for a policy whose parameters are placed on its mesh, or are shapes with shardings."""
  mesh, params = policy.mesh, policy.params
  optimizers = builders.optimizer_pair(config)
  state = jax.eval_shape(lambda p: builders.initial_state(config, p, optimizers), params)
  shardings = sharding.tree_shardings(state, mesh)
  state = _with(state, shardings)
  parts = {"params": state.params, "optimizer": state.opt_state}
  if config.offline.loss is None:
    step = online.compile_step(config, policy, optimizers, shardings)
    groups = _groups(config, mesh, config.sampling.group_size + config.replay.size)
    found = [Program("online_step", step, (state, params, groups), {}, parts | {"reference": params}, 1)]
    return found + [_sampler(config, policy)]
  objective = offline_builders.objective(config)
  step = offline.compile_step(config, policy, objective, optimizers, shardings)
  frozen = params if builders.lora_config(config) else None
  parts_here = parts | ({"reference": params} if frozen else {})
  found = [Program("offline_step", step, (state, _pairs(config, mesh), frozen), {}, parts_here, 1)]
  if config.offline.measure_every:
    measured = offline.compile_dual_step(config, policy, objective, optimizers, shardings)
    groups = _groups(config, mesh, config.sampling.group_size)
    stats = TokenStats(*(jax.ShapeDtypeStruct(groups.mask.shape, jnp.float32, sharding=groups.mask.sharding),) * 2)
    arguments = (state, params, groups, stats)
    found += [Program("dual_step", measured, arguments, {}, parts | {"reference": params}, 1), _sampler(config, policy)]
  return found


def model_config(source: str) -> ModelConfig:
  """The decoder's shape by its name, without its weights.

  Raises:
    InputError: no preset has that name.
  """
  name = "smollm2-135m" if source == "demo" else source.rpartition("/")[2].lower().removeprefix("meta-")
  for ending in ("-instruct", "-base"):
    name = name.removesuffix(ending)
  return presets.get(name)


def _sampler(config, policy) -> Program:
  settings = config.sampling
  mesh, rows = policy.mesh, config.data.prompts_per_step
  split = runs.split(mesh, rows)
  shape = (rows, packing.round_up(config.data.max_prompt_length, 16))
  prompts = PromptBatch(_array(shape, jnp.int32, split), _array(shape, bool, split))
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
  options = dict(
      config=policy.config,
      group_size=settings.group_size,
      max_length=settings.max_response_length,
      temperature=settings.temperature,
      stop_tokens=policy.stop_tokens,
      slots=settings.slots,
      halvings=settings.halvings,
  )
  jitted = jax.jit(
      sharding.on_mesh(lambda params, prompts, rng: sampler.sample_groups(params, prompts=prompts, rng=rng, **options), mesh)
  )
  parts = {"params": policy.params}
  return Program("sampler", jitted, (policy.params, prompts, key), {}, parts, settings.max_response_length)


def _groups(config, mesh, group_size) -> GroupBatch:
  rows, length = config.data.prompts_per_step, config.sampling.max_response_length
  split = runs.split(mesh, rows)
  flags = lambda dtype: _array((rows, group_size), dtype, split)
  mask = _array((rows, group_size, length), bool, split)
  return GroupBatch(_packed(config, rows, group_size, split), mask, flags(jnp.float32), flags(bool), flags(bool))


def _pairs(config, mesh) -> PairBatch:
  rows, length = config.offline.pairs_per_step, config.sampling.max_response_length
  loss = offline_losses.LOSSES[config.offline.loss]
  split = runs.split(mesh, rows)
  reads = loss.needs_reference or config.offline.log_change
  mask = _array((rows, loss.responses, length), bool, split)
  ref_log_probs = _array((rows, loss.responses), jnp.float32, split) if reads else None
  return PairBatch(_packed(config, rows, loss.responses, split), mask, ref_log_probs)


def _packed(config, rows, group_size, split) -> PackedGroups:
  """Every response as long as it may be."""
  length, bucket = config.sampling.max_response_length, config.compute.bucket
  layout = packing.row_layout(config.data.max_prompt_length, length, bucket=bucket)
  places = packing.round_up(max(group_size * (length - 1), 1), bucket)
  array = lambda width: _array((rows, width), jnp.int32, split)
  fed, scored = layout.prompt + places, places + group_size
  return PackedGroups(*(array(fed) for _ in range(3)), *(array(scored) for _ in range(4)), layout)


def _array(shape, dtype, where):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _placed(tree, mesh, rules):
  return _with(tree, sharding.tree_shardings(tree, mesh, rules))


def _with(tree, shardings):
  return jax.tree.map(lambda leaf, where: _array(leaf.shape, leaf.dtype, where), tree, shardings)

