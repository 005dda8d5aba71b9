"""ConfigDict -> typed objects: the only file that knows both the configs and the library."""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import constrained
from qempo_jax import sharding
from qempo_jax.data import prompts
from qempo_jax.data import special_tokens
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from qempo_jax.kernels.choice import TOKEN_STATS
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import lora
from qempo_jax.models.config import ATTENTIONS
from qempo_jax.models.config import KV_CACHES
from qempo_jax.models.config import REMATS
from qempo_jax.models.config import ModelConfig
from qempo_jax.rewards import compose
from qempo_jax.rewards import registry
from qempo_jax.train import online_step
from qempo_jax.train import optimizers
from qempo_jax.train import state as train_state

# Keys besides `model` that a loaded policy holds: runs that share one share them.
LOADED = (
  "compute.dtype",
  "compute.attention",
  "compute.token_stats",
  "compute.remat",
  "compute.kv_cache",
  "compute.mesh",
  "compute.dcn_mesh",
  "sampling.allowed_tokens",
)
DTYPES = ("float32", "bfloat16")


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


def check_one_method(config: ConfigDict) -> None:
  """Raises InputError where the config holds several methods."""
  if "method" not in config:
    raise InputError("this config holds several methods; give one method's, such as configs/online_qempo_kl.py")


def policy(config: ConfigDict) -> Policy:
  """Loads the model that the config names."""
  placed = mesh(config)
  check_choices(config)
  check_reference_memory(config)
  source = str(demo_model.demo_model_path()) if config.model.source == "demo" else config.model.source
  tokenizer = tokenization.load_tokenizer(source)
  model_config, params = conversion.load(source, mesh=placed, dtype=jax.numpy.dtype(config.model.dtype))
  model_config = dataclasses.replace(
    model_config,
    compute_dtype=config.compute.dtype,
    attention=config.compute.attention,
    token_stats=config.compute.token_stats,
    remat=config.compute.remat,
    kv_cache=config.compute.kv_cache,
    num_tokens=special_tokens.num_tokens(tokenizer, model_config.vocab_size),
    forbidden=special_tokens.forbidden_token_ids(
      tokenizer, allowed=config.sampling.allowed_tokens, vocab_size=model_config.vocab_size
    ),
  )
  return Policy(model_config, params, tokenizer, tuple(tokenization.stop_token_ids(tokenizer)), placed)


def check_choices(config: ConfigDict) -> None:
  """Raises InputError where a size is not positive, or a choice of `model` or `compute` is none of those there are."""
  _one_of("compute.dtype", config.compute.dtype, DTYPES)
  _one_of("model.dtype", config.model.dtype, DTYPES)
  _one_of("compute.attention", config.compute.attention, ATTENTIONS)
  _one_of("compute.token_stats", config.compute.token_stats, TOKEN_STATS)
  _one_of("compute.remat", config.compute.remat, REMATS)
  _one_of("compute.kv_cache", config.compute.kv_cache, KV_CACHES)
  for key in ("data.prompts_per_step", "sampling.group_size", "sampling.max_response_length", "sampling.temperature",
              "evaluation.prompts_per_batch", "evaluation.samples_per_prompt"):  # fmt: skip
    group, name = key.split(".")
    if not config[group][name] > 0:
      raise InputError(f"config.{key}={config[group][name]} must be positive")


def with_reference_in_its_place(config: ConfigDict, policy: Policy) -> Policy:
  """The policy, its parameters moved to the hosts' memory where the config wants that; the caller drops the old ones.

  Raises:
    InputError: there is no such memory, or adapters are trained, whose policy holds the reference itself.
  """
  check_reference_memory(config)
  return (
    policy._replace(params=sharding.offloaded(policy.params)) if config.compute.reference_memory == "host" else policy
  )


def check_reference_memory(config: ConfigDict) -> None:
  """Raises InputError where the reference cannot be kept in the memory that the config names."""
  _one_of("compute.reference_memory", config.compute.reference_memory, ("device", "host"))
  if config.compute.reference_memory == "host" and config.lora.rank:
    raise InputError(
      "compute.reference_memory=host with lora.rank: the reference beneath the adapters is the policy, needed all the"
      " time; set it to device"
    )


def mesh(config: ConfigDict, devices=None) -> jax.sharding.Mesh:
  """All devices, or those that are given, as the config arranges them.

  Raises:
    InputError: they cannot be arranged so, or packed rows cannot be split over the sequence axis.
  """
  found = sharding.make_mesh(tuple(config.compute.mesh), dcn=tuple(config.compute.dcn_mesh), devices=devices)
  parts = dict(found.shape).get(sharding.SEQUENCE, 1)
  if config.compute.bucket % parts:
    raise InputError(
      f"compute.mesh splits rows of a multiple of compute.bucket={config.compute.bucket} tokens over {parts} devices:"
      f" make compute.bucket a multiple of {parts}"
    )
  return found


def training_rows(config: ConfigDict, tokenizer: Any = None) -> list[prompts.Row]:
  """The prompts to train on, with their columns; rows that the tokenizer's chat template refuses are bad rows."""
  return prompts.load_rows(
    config.data.source,
    sets=tuple(config.data.sets),
    wordings=tuple(config.data.wordings),
    on_bad_row=config.data.on_bad_row,
    max_bad_share=config.data.max_bad_share,
    note=print,
    tokenizer=tokenizer,
  )


def reward(config: ConfigDict) -> Callable:
  """The reward function that the config names, or the composition of several.

  Raises:
    InputError: a function cannot be made, or a quality floor is set on a sum that is not in the rewards' own units.
  """
  r = config.reward
  if not r.functions:
    function = registry.resolve(r.function)
    return (
      function if r.unscored is None else compose.Composition([compose.Term("reward", function)], unscored=r.unscored)
    )
  composed = compose.Composition([_term(entry) for entry in r.functions], unscored=r.unscored)
  moving = [term.name for term in composed.terms if term.weight and term.normalise != "none"]
  if moving and config.constraints.quality.bound is not None:
    raise InputError(
      f"reward {moving[0]!r} is normalised, so constraints.quality.bound has no fixed meaning: set its normalisation to"
      ' "none", or the bound to none and a floor on that reward'
    )
  if composed.floors and (config.offline.loss is not None or config.replay.size):
    raise InputError(
      f"reward {next(iter(composed.floors))!r} has a floor, which only online training without replay enforces:"
      " set offline.loss to none and replay.size to 0, or the floor to None"
    )
  return composed


def objective(config: ConfigDict) -> online_step.OnlineObjective:
  """What the online step climbs.

  Raises:
    InputError: the method's baseline leaves no advantage in the groups of one that the config asks for.
  """
  _one_of("sampling.stale_steps", config.sampling.stale_steps, (0, 1))
  method = constrained.method(config)
  if config.sampling.group_size == 1 and not method.baseline(jax.numpy.ones(1), jax.numpy.ones(1, bool)).any():
    raise InputError(
      f"sampling.group_size=1 leaves {config.method} nothing to learn from: its baseline is the mean of the group, so every"
      " advantage is 0; set it to 2 or more"
    )
  return online_step.OnlineObjective(
    method=method,
    constraints=constrained.constraints(config),
    replay_weight=config.replay.weight,
    averaging=config.duals.averaging,
    max_importance=config.sampling.max_importance,
  )


def optimizer_pair(config: ConfigDict) -> online_step.Optimizers:
  """The policy's AdamW and the multipliers' controller."""
  o = config.optimizer
  _one_of("optimizer.moments_dtype", o.moments_dtype, DTYPES)
  policy_optimizer = optimizers.adamw(
    learning_rate=o.learning_rate,
    warmup_steps=o.warmup_steps,
    total_steps=config.steps,
    final_fraction=o.final_fraction,
    b1=o.b1,
    b2=o.b2,
    weight_decay=o.weight_decay,
    max_grad_norm=o.max_grad_norm,
    moments_dtype=o.moments_dtype,
  )
  return online_step.Optimizers(policy_optimizer, constrained.controller(config))


def initial_state(config: ConfigDict, params, optimizers_pair: online_step.Optimizers):
  """The state before the first step: the policy, a copy of the reference, or adapters that change nothing yet."""
  return train_state.create(
    _trainable(config, params),
    constrained.dual_params(config),
    jax.random.key(config.seed),
    optimizer=optimizers_pair.policy,
    dual_optimizer=optimizers_pair.dual,
    averaged=(*train_state.AVERAGED, *constrained.settings(config)),
  )


def as_policy(config: ConfigDict) -> Callable:
  """(what is trained, the reference) -> the policy's parameters, without copying either."""
  if lora_config(config) is None:
    return train_state.whole_policy
  return _beside_reference


def lora_config(config: ConfigDict) -> lora.LoraConfig | None:
  """The adapters that the config names; None trains the whole policy."""
  rank = config.lora.rank
  return lora.LoraConfig(rank, config.lora.alpha, config.lora.targets) if rank else None


def micro_batches(config: ConfigDict, rows: int, mesh: jax.sharding.Mesh | None = None) -> int:
  """Into how many parts a batch of so many rows is split.

  Raises:
    InputError: that many parts do not divide the rows, or the mesh does not divide the rows of a part.
  """
  parts = config.compute.micro_batches
  if parts < 1 or rows % parts:
    raise InputError(f"compute.micro_batches={parts} does not divide the {rows} rows of a batch; choose a divisor")
  shards = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
  if rows // parts % shards:
    raise InputError(
      f"{rows} rows a step in compute.micro_batches={parts} parts leave {rows // parts} for data x fsdp = {shards}"
      f" devices of compute.mesh, each of which would compute them all: make data.prompts_per_step (or"
      f" offline.pairs_per_step) a multiple of {parts * shards}, or start with fewer devices visible"
    )
  return parts


def precision_note(config: ConfigDict, params) -> str | None:
  """A warning where parameters kept in bfloat16 would swallow the optimizer's updates, or None.

  Between 2^e and 2^(e+1) bfloat16's numbers are 2^(e-7) apart, and AdamW moves a weight by about the learning rate:
  a weight above 2^8 learning rates stays where it is.
  """
  if config.model.dtype != "bfloat16" or config.lora.rank:
    return None
  bound = 2**8 * config.optimizer.learning_rate
  leaves = jax.tree.leaves(params)
  stuck = sum(int(jax.numpy.sum(jax.numpy.abs(leaf) > bound)) for leaf in leaves) / sum(leaf.size for leaf in leaves)
  return (
    f"model.dtype=bfloat16 rounds updates of optimizer.learning_rate={config.optimizer.learning_rate:g} away on about"
    f" {stuck:.0%} of the weights; train in float32 (compute.dtype=bfloat16 keeps its speed), or set lora.rank"
  )


def _beside_reference(adapters, ref_params):
  return lora.apply(ref_params, adapters)


def _trainable(config: ConfigDict, params):
  adapters = lora_config(config)
  if adapters is None:
    return jax.tree.map(jax.numpy.copy, params)
  return lora.init(jax.random.fold_in(jax.random.key(config.seed), _ADAPTERS), params, adapters)


# Folded into the run's key for the adapters' first values: no step has this number.
_ADAPTERS = 2**31


def _entry(entry) -> tuple:
  """One of config.reward.functions: (name, function, weight, normalisation, floor or None)."""
  if not isinstance(entry, (tuple, list)) or len(entry) != 5:
    raise InputError(
      f"reward.functions has {entry!r}; each must be (name, function, weight, normalisation, floor or None)"
    )
  return tuple(entry)


def _term(entry) -> compose.Term:
  name, function, weight, normalise, floor = _entry(entry)
  return compose.Term(name, registry.resolve(function), weight, normalise, floor)


def _one_of(key: str, value, allowed: tuple) -> None:
  if value not in allowed:
    raise InputError(f"config.{key}={value!r} is not one of {', '.join(map(str, allowed))}")
