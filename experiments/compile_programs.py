"""The programs that a config's run compiles, with abstract arguments: its own jitted functions, and no weights."""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import builders
from experiments import constrained
from experiments import offline_builders
from experiments.loops import offline
from experiments.loops import online
from experiments.loops import runs
from qempo_jax import offline_losses
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.models import presets
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.sampling import layout
from qempo_jax.sampling import sampler
from qempo_jax.token_stats import TokenStats
from qempo_jax.train.offline_step import PairBatch
from qempo_jax.train.online_step import GroupBatch
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
    held: arrays that lie in the devices' memory meanwhile, and are none of its arguments.
  """

  name: str
  jitted: Any
  arguments: tuple
  options: dict[str, Any]
  parts: dict[str, Any]
  trips: int
  held: Any = ()


def programs(config, devices) -> list[Program]:
  """The steps and the sampler that the config's run uses, in the largest shapes they may have.

  Args:
    config: a complete config; `model.source` names a preset, or is "demo".
    devices: what to compile for.

  Returns:
    The programs.
  """
  mesh = builders.mesh(config, devices)
  model = dataclasses.replace(
    model_config(config.model.source),
    compute_dtype=config.compute.dtype,
    attention=config.compute.attention,
    token_stats=config.compute.token_stats,
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
  if config.compute.reference_memory == "host":
    builders.check_reference_memory(config)
    params = _with(params, jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind(sharding.HOST), params))
    policy = policy._replace(params=params)
  reference = {} if config.compute.reference_memory == "host" else {"reference": params}
  if config.offline.loss is None:
    step = online.compile_step(config, policy, optimizers, shardings)
    groups = _groups(config, mesh, config.sampling.group_size + config.replay.size)
    found = [Program("online_step", step, (state, params, groups), {}, parts | reference, 1)]
    return found + _sampling(config, policy, state, reference)
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
    found.append(Program("dual_step", measured, arguments, {}, parts | reference, 1))
    found += _sampling(config, policy, state, reference)
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


def _sampling(config, policy, state, reference) -> list[Program]:
  """The parameters' way to the layout they are sampled in, and the sampler; the training state waits beside both."""
  settings = config.sampling
  mesh, rows = layout.sampling_mesh(policy.mesh, tuple(settings.mesh)), config.data.prompts_per_step
  trained = builders.as_policy(config)(state.params, policy.params)
  arrange = layout.arrangement(trained, policy.config, mesh)
  params = _placed(jax.eval_shape(arrange, trained), mesh, layout.RULES)
  copied = jax.tree.map(_looks, params) != jax.tree.map(_looks, trained)
  # With adapters the reference is a part of what is trained, and counted there.
  rest = (state.opt_state, () if builders.lora_config(config) else reference)
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
    sharding.on_mesh(
      lambda params, prompts, rng: sampler.sample_groups(params, prompts=prompts, rng=rng, **options), mesh
    )
  )
  return [
    Program("reshard", arrange, (trained,), {}, {"params": trained}, 1, held=rest),
    Program(
      "sampler",
      jitted,
      (params, prompts, key),
      {},
      {"params": params},
      settings.max_response_length,
      held=(trained, rest) if copied else rest,
    ),
  ]


def _groups(config, mesh, group_size) -> GroupBatch:
  rows, length = config.data.prompts_per_step, config.sampling.max_response_length
  split = runs.split(mesh, rows)
  flags = lambda dtype: _array((rows, group_size), dtype, split)
  mask = _array((rows, group_size, length), bool, split)
  behaviour = flags(jnp.float32) if config.sampling.stale_steps else None
  names = dict.fromkeys(["reward", *(entry[0] for entry in config.reward.functions)])
  features = constrained.method(config).features(np.zeros(mask.shape, np.int32), np.zeros(mask.shape, bool))
  return GroupBatch(
    _packed(config, rows, group_size, split),
    mask,
    {name: flags(jnp.float32) for name in names},
    flags(bool),
    flags(bool),
    {name: _array(value.shape, value.dtype, split) for name, value in features.items()},
    behaviour_log_probs=behaviour,
  )


def _pairs(config, mesh) -> PairBatch:
  rows, length = config.offline.pairs_per_step, config.sampling.max_response_length
  loss = offline_losses.LOSSES[config.offline.loss]
  split = runs.split(mesh, rows)
  reads = loss.needs_reference or config.offline.log_change
  mask = _array((rows, loss.responses, length), bool, split)
  ref_log_probs = _array((rows, loss.responses), jnp.float32, split) if reads else None
  packed = _packed(config, rows, loss.responses, split, offline_builders.pairs_per_row(config, mesh))
  return PairBatch(packed, mask, ref_log_probs)


def _packed(config, prompts, group_size, split, per_row=1) -> PackedGroups:
  """Every response as long as it may be."""
  length, bucket = config.sampling.max_response_length, config.compute.bucket
  prompt = per_row * config.data.max_prompt_length
  layout = packing.row_layout(prompt, length, bucket=bucket, prompts=per_row, responses=group_size)
  places = packing.round_up(max(per_row * group_size * (length - 1), 1), bucket)
  array = lambda width: _array((prompts // per_row, width), jnp.int32, split)
  fed, scored = layout.prompt + places, places + per_row * group_size
  return PackedGroups(*(array(fed) for _ in range(3)), *(array(scored) for _ in range(4)), layout)


def _looks(leaf):
  """What of an array decides whether laying it out anew makes a copy: its type, and the part that a device has."""
  return str(leaf.dtype), leaf.sharding.shard_shape(leaf.shape)


def _array(shape, dtype, where):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _placed(tree, mesh, rules):
  return _with(tree, sharding.tree_shardings(tree, mesh, rules))


def _with(tree, shardings):
  return jax.tree.map(lambda leaf, where: _array(leaf.shape, leaf.dtype, where), tree, shardings)
