"""The report of --dry_run about a run that was built and not started: shapes, and the least memory they need."""

from collections.abc import Iterator
from collections.abc import Sequence
import math

import jax

from experiments.batches.reward_pairs import RewardPlan
from experiments.compile import programs
from experiments.compile import roofline
from experiments.plan import Plan
from experiments.plan import Policy
from experiments.plan import Sampling
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.models import reward_head
from qempo_jax.sampling import layout
from qempo_jax.token_stats import MAX_LOGITS

GIB = 2**30


def describe(plan: Plan) -> str:
  """Shapes of one run's model and batches, and the memory that one of its devices needs at least.

  Its programs are traced, not compiled.

  Raises:
    InputError: the first step or sample would be refused, such as an attention that these devices lack.
  """
  steps = programs.of_plan(plan)
  for program in steps:
    program.jitted.trace(*program.arguments, **program.options)
  return "\n".join([model_line(plan.policy), *_batches(steps), memory_line(memory(plan, steps), plan.policy)])


def describe_programs(plan: Plan) -> str:
  """The same for devices that need not exist, without weights."""
  found = programs.of_plan(plan)
  steps = [program.parts for program in found if program.name.endswith("_step")]
  parts = {name: max(_bytes(step.get(name, ())) for step in steps) for name in ("params", "optimizer", "reference")}
  parts["gradients"] = _bytes(found[0].parts["params"])
  return "\n".join([*_batches(found), memory_line(parts | _laid_out(found))])


def model_line(policy: Policy) -> str:
  """The decoder's shape."""
  c, leaves = policy.config, jax.tree.leaves(policy.params)
  dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
  return (
    f"Model: {sum(leaf.size for leaf in leaves):,} parameters ({dtypes}), {c.num_layers} layers of width"
    f" {c.hidden_size}, {c.num_heads} heads ({c.num_kv_heads} of keys), vocabulary {c.vocab_size:,};"
    f" mesh {dict(policy.mesh.shape)}"
  )


def memory(plan: Plan, steps: Sequence[programs.Program]) -> dict[str, int]:
  """Bytes on one device by part; only gradients and a block's logits are counted as temporaries of a step.

  A lower bound: activations, the compiler's scratch and what stays of the sampler are not in it, which
  `experiments.compile_check` finds for TPUs by compiling.
  """
  trained, policy = steps[0].parts, plan.policy
  in_host_memory = jax.tree.leaves(policy.params)[0].sharding.memory_kind == sharding.HOST
  found = {
    "trained parameters": _bytes(trained["params"]),
    "optimizer": _bytes(trained["optimizer"]),
    "reference": 0 if in_host_memory else _bytes(policy.params),
    "gradients": _bytes(trained["params"]),
    # and their gradient
    "logits of a block": 8 * min(plan.sampling.chunk_size * policy.config.vocab_size, MAX_LOGITS),
  }
  if any(program.name == "sampler" for program in steps):
    found |= _laid_out(steps)
    found["keys and values while sampling"] = _cache_bytes(plan.sampling, policy)
  return found


def _laid_out(steps) -> dict[str, int]:
  """The policy as it is sampled from, where that is another copy than the one in training."""
  before, after = (
    sum(_bytes(program.parts["params"]) for program in steps if program.name == name) for name in ("reshard", "sampler")
  )
  return {"parameters while sampling": after} if after != before else {}


def memory_line(parts: dict[str, int], policy: Policy | None = None) -> str:
  """The estimate, and the memory of the policy's devices if they report it."""
  each = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
  stats = policy.mesh.devices.flat[0].memory_stats() if policy else None
  limit = (stats or {}).get("bytes_limit")
  there = f" of {limit / GIB:.1f} there" if limit else ""
  return f"Memory of a device: at least {sum(parts.values()) / GIB:.2f} GiB{there} ({each}); activations come on top"


def describe_sampling(sampling: Sampling, policy: Policy) -> str:
  """The same where samples are drawn and nothing is trained."""
  parts = {"parameters": _bytes(policy.params), "keys and values while sampling": _cache_bytes(sampling, policy)}
  return f"{model_line(policy)}\n{memory_line(parts, policy)}"


def describe_reward_model(plan: RewardPlan) -> str:
  """The same for a reward model."""
  model = plan.model
  state = sharding.abstract(jax.eval_shape(plan.first_state, model.params), model.mesh, reward_head.RULES)
  frozen = reward_head.split(model.params, model.config, plan.settings.trainable)[1]
  parts = {"trained parameters": _bytes(state.params), "optimizer": _bytes(state.opt_state)}
  parts |= {"frozen parameters": _bytes(frozen), "gradients": _bytes(state.params)}
  return f"{model_line(model)}\n{memory_line(parts, model)}"


def _batches(steps) -> list[str]:
  taken = {program.name: ", ".join(dict.fromkeys(_batch_shapes(program))) for program in steps}
  return [f"{name}: takes {shapes}" for name, shapes in taken.items() if shapes]


def _batch_shapes(program) -> Iterator[str]:
  """Arrays that are neither state nor parameters: the ones that grow with the config."""
  known = {id(leaf) for part in program.parts.values() for leaf in jax.tree.leaves(part)}
  for leaf in jax.tree.leaves(program.arguments[1:]):
    if id(leaf) not in known and leaf.ndim:
      yield f"{leaf.dtype}{list(leaf.shape)}"


def _bytes(tree) -> int:
  """Of the part that one device holds."""
  size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(size(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf.dtype, "itemsize"))


def _cache_bytes(s: Sampling, policy: Policy) -> int:
  """Keys and values of the prompts, once and beside each slot that queues, and of the slots; rows are split over the data axes."""
  c, rows = policy.config, s.prompts
  mesh = dict(layout.sampling_mesh(policy.mesh, s.mesh).shape)
  ways = mesh["data"] * mesh["fsdp"]
  ways = ways if rows % ways == 0 else 1
  prompt = packing.round_up(s.max_prompt_length, 16)
  samples = rows // ways * s.group_size
  slots = -(-s.slots // ways)
  queues = 0 < slots < samples
  tokens = (
    rows // ways * prompt + (slots * prompt if queues else 0) + (slots if queues else samples) * s.max_response_length
  )
  kind = "float32" if c.kv_cache == "auto" else c.kv_cache
  sequences = rows // ways + (slots if queues else samples)
  return tokens * roofline.cache_bytes(c, kind) + sequences * roofline.state_bytes(c)
