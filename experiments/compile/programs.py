"""The programs that a run compiles, with abstract arguments: its own jitted functions, and no weights."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.batches import groups
from experiments.batches import pairs
from experiments.plan import Plan
from qempo_jax import offline_losses
from qempo_jax import packing
from qempo_jax import sharding
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
    trips: iterations of a loop that may end early, on average over its loops.
    held: arrays that lie in the devices' memory meanwhile, and are none of its arguments.
  """

  name: str
  jitted: Any
  arguments: tuple
  options: dict[str, Any]
  parts: dict[str, Any]
  trips: float
  held: Any = ()


def of_plan(plan: Plan) -> list[Program]:
  """The steps and the sampler of a run, in the largest shapes they may have.

  Args:
    plan: the run's computation; its policy's parameters are placed on the mesh, or are shapes with shardings.
  """
  policy, state = plan.policy, plan.abstract_state()
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  parts = {"params": state.params, "optimizer": state.opt_state}
  in_host_memory = jax.tree.leaves(policy.params)[0].sharding.memory_kind == sharding.HOST
  reference = {} if in_host_memory else {"reference": policy.params}
  if plan.pairs is None:
    step = groups.compile_step(plan, shardings)
    batch = _groups(plan, plan.sampling.group_size + plan.replay_size)
    found = [Program("online_step", step, (state, policy.params, batch), {}, parts | reference, 1)]
    return found + _sampling(plan, state, reference)
  frozen = policy.params if plan.adapters else None
  arguments, own = (state, _pairs(plan), frozen), parts | ({"reference": frozen} if frozen else {})
  found = [Program("offline_step", pairs.compile_step(plan, shardings), arguments, {}, own, 1)]
  if plan.pairs.measure_every:
    batch = _groups(plan, plan.sampling.group_size)
    stats = TokenStats(*(jax.ShapeDtypeStruct(batch.mask.shape, jnp.float32, sharding=batch.mask.sharding),) * 2)
    arguments, step = (state, policy.params, batch, stats), pairs.compile_dual_step(plan, shardings)
    found.append(Program("dual_step", step, arguments, {}, parts | reference, 1))
    found += _sampling(plan, state, reference)
  return found


def _sampling(plan: Plan, state, reference) -> list[Program]:
  """The parameters' way to the layout they are sampled in, and the sampler; the training state waits beside both."""
  policy, settings = plan.policy, plan.sampling
  mesh, rows = layout.sampling_mesh(policy.mesh, settings.mesh), settings.prompts
  trained = plan.as_policy(state.params, policy.params)
  arrange = layout.arrangement(trained, policy.config, mesh)
  params = sharding.abstract(jax.eval_shape(arrange, trained), mesh, layout.RULES)
  copied = jax.tree.map(_looks, params) != jax.tree.map(_looks, trained)
  # With adapters the reference is a part of what is trained, and counted there.
  rest = (state.opt_state, () if plan.adapters else reference)
  split = sharding.rows_sharding(mesh, rows)
  shape = (rows, packing.round_up(settings.max_prompt_length, 16))
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
    transform=settings.transform,
  )
  sample = lambda params, prompts, rng: sampler.sample_groups(params, prompts=prompts, rng=rng, **options)
  # A token takes a turn of one of the loops, one for each size of the rings and one for each halving.
  loops = len(sampler.ring_sizes(settings.max_response_length)) + settings.halvings
  trips = settings.max_response_length / loops
  jitted, held = jax.jit(sharding.on_mesh(sample, mesh)), (trained, rest) if copied else rest
  return [
    Program("reshard", arrange, (trained,), {}, {"params": trained}, 1, held=rest),
    Program("sampler", jitted, (params, prompts, key), {}, {"params": params}, trips, held=held),
  ]


def _groups(plan: Plan, group_size: int) -> GroupBatch:
  rows, length = plan.sampling.prompts, plan.sampling.max_response_length
  split = sharding.rows_sharding(plan.policy.mesh, rows)
  flags = lambda dtype: _array((rows, group_size), dtype, split)
  mask = _array((rows, group_size, length), bool, split)
  features = {}
  if plan.pairs is None:
    features = plan.objective.method.features(np.zeros(mask.shape, np.int32), np.zeros(mask.shape, bool))
  return GroupBatch(
    _packed(plan, rows, group_size, split),
    mask,
    {name: flags(jnp.float32) for name in plan.rewards},
    flags(bool),
    flags(bool),
    {name: _array(value.shape, value.dtype, split) for name, value in features.items()},
    behaviour_log_probs=flags(jnp.float32) if plan.stale_steps or plan.sampling.function else None,
  )


def _pairs(plan: Plan) -> PairBatch:
  settings, responses = plan.pairs, plan.pairs.responses
  split = sharding.rows_sharding(plan.policy.mesh, settings.per_step)
  mask = _array((settings.per_step, responses, plan.sampling.max_response_length), bool, split)
  numbers, packed = _array(mask.shape[:2], jnp.float32, split), _packed(plan, *mask.shape[:2], split, settings.per_row)
  lists = offline_losses.ListWeights(*[numbers] * 3) if offline_losses.LOSSES[plan.objective.loss].lists else None
  return PairBatch(packed, mask, numbers if settings.ref_log_probs else None, lists=lists)


def _packed(plan: Plan, prompts, group_size, split, per_row=1) -> PackedGroups:
  """Every response as long as it may be."""
  length, bucket = plan.sampling.max_response_length, plan.sampling.bucket
  prompt = per_row * plan.sampling.max_prompt_length
  layout = packing.row_layout(prompt, length, bucket=bucket, prompts=per_row, responses=group_size)
  places = packing.bucketed(max(per_row * group_size * (length - 1), 1), bucket)
  array = lambda width: _array((prompts // per_row, width), jnp.int32, split)
  fed, scored = layout.prompt + places, places + per_row * group_size
  return PackedGroups(*(array(fed) for _ in range(3)), *(array(scored) for _ in range(4)), layout)


def _looks(leaf):
  """Type and per-device shape of an array: laying it out anew copies it where one of the two changes."""
  return str(leaf.dtype), leaf.sharding.shard_shape(leaf.shape)


def _array(shape, dtype, where):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
