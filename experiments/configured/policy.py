"""The `model`, `compute` and `lora` groups of a config -> the reference policy on its mesh, and its trainable parameters."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.plan import Policy
from qempo_jax import call_text
from qempo_jax import sharding
from qempo_jax.data import special_tokens
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import presets
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import expand_path
from qempo_jax.rewards import reward_model
from qempo_jax.train import state as train_state

# Keys besides `model` that a loaded policy depends on: runs that share one share them.
LOADED = (
  "compute.dtype",
  "compute.attention",
  "compute.token_stats",
  "compute.remat",
  "compute.kv_cache",
  "compute.mesh",
  "compute.dcn_mesh",
  "sampling.allowed_tokens",
  "data.max_prompt_length",
  "sampling.max_response_length",
)


def policy(config: ConfigDict) -> Policy:
  """Loads the model that the config names."""
  placed = mesh(config)
  _check_reference_memory(config)
  path = source(config)
  tokenizer = load_tokenizer(config)
  model_config, params = conversion.load(path, mesh=placed, dtype=jax.numpy.dtype(config.model.dtype))
  model_config = dataclasses.replace(
    _with_compute(config, model_config),
    num_tokens=special_tokens.num_tokens(tokenizer, model_config.vocab_size),
    forbidden=forbidden(config, tokenizer, vocab_size=model_config.vocab_size),
  )
  return Policy(
    model_config, params, tokenizer, tuple(tokenization.stop_token_ids(tokenizer)), placed, config.model.source, path
  )


def load_tokenizer(config: ConfigDict) -> Any:
  """The model's tokenizer, its chat template with the config's variables and date."""
  path = source(config)
  found = tokenization.load_tokenizer(path)
  rows = special_tokens.read_settings(expand_path(path), "config.json").get("vocab_size")
  if isinstance(rows, int):  # Programs that load no model hold the ids against its embedding too.
    special_tokens.num_tokens(found, rows)
  templates.configure(found, options=template_options(config), date=config.model.template_date)
  return found


def template_options(config: ConfigDict) -> dict[str, Any]:
  """Default values of the chat template's variables."""
  text = config.model.chat_template_kwargs
  arguments, options = call_text.parse(f"_({text})", "model.chat_template_kwargs")[1:]
  if arguments:
    raise InputError(f"model.chat_template_kwargs={text!r} must be NAME=VALUE, such as enable_thinking=False")
  return options


def forbidden(config: ConfigDict, tokenizer, **options) -> tuple[int, ...]:
  """Ids of the special tokens that are masked out of sampler and scorer."""
  return special_tokens.forbidden_token_ids(tokenizer, allowed=config.sampling.allowed_tokens, **options)


def source(config: ConfigDict) -> str:
  """The path or the name of the model's files."""
  return str(demo_model.demo_model_path()) if config.model.source == "demo" else config.model.source


def abstract_policy(config: ConfigDict, devices) -> Policy:
  """The policy as shapes with shardings, without weights or tokenizer; `model.source` names a preset, or is "demo".

  Raises:
    InputError: no preset has that name.
  """
  placed = mesh(config, devices)
  name = "smollm2-135m" if config.model.source == "demo" else config.model.source
  model_config = _with_compute(config, model_config_of(name))
  create = lambda: parameters.init(jax.random.key(0), model_config, dtype=jax.numpy.dtype(config.model.dtype))
  params = sharding.abstract(jax.eval_shape(create), placed, sharding.PARAM_RULES)
  return Policy(model_config, params, None, (0,), placed, config.model.source)


def model_config_of(name: str) -> ModelConfig:
  """The decoder's shape by its name, without its weights.

  Raises:
    InputError: no preset has that name.
  """
  name = name.rpartition("/")[2].lower().removeprefix("meta-")
  for ending in ("-instruct", "-base"):
    name = name.removesuffix(ending)
  return presets.get(name)


def reward_policy(config: ConfigDict) -> Policy:
  """The model that the config names, with its own head or, for a language model, one that scores all texts 0."""
  placed = mesh(config)
  for key, allowed in (("compute.micro_batches", 1), ("model.dtype", "float32"), ("compute.distributed", False)):
    group, name = key.split(".")
    if config[group][name] != allowed:
      raise InputError(f"config.{key}={config[group][name]} is not for reward models; leave it at {allowed}")
  found = reward_model.load_model(config.model.source, mesh=placed, compute_dtype=config.compute.dtype)
  templates.configure(found.tokenizer, options=template_options(config), date=config.model.template_date)
  shape = dataclasses.replace(found.config, attention=config.compute.attention, remat=config.compute.remat)
  stop_tokens = tuple(tokenization.stop_token_ids(found.tokenizer))
  return Policy(shape, found.params, found.tokenizer, stop_tokens, found.mesh, config.model.source, config.model.source)


def with_reference_in_its_place(config: ConfigDict, policy: Policy) -> Policy:
  """The policy, its parameters moved to the hosts' memory where the config wants that; the caller drops the old ones."""
  _check_reference_memory(config)
  if config.compute.reference_memory != "host":
    return policy
  if isinstance(jax.tree.leaves(policy.params)[0], jax.ShapeDtypeStruct):
    move = lambda leaf: leaf.update(sharding=leaf.sharding.with_memory_kind(sharding.HOST))
    return policy._replace(params=jax.tree.map(move, policy.params))
  return policy._replace(params=sharding.offloaded(policy.params))


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


def slices(config: ConfigDict) -> int:
  """Number of slices, groups of chips that a slower network joins."""
  return math.prod(config.compute.dcn_mesh)


def as_policy(config: ConfigDict) -> Callable:
  """(trainable parameters, the reference's) -> the policy's parameters, without copying either."""
  return train_state.whole_policy if lora_config(config) is None else _beside_reference


def lora_config(config: ConfigDict) -> lora.LoraConfig | None:
  """The adapters that the config names; None trains the whole policy."""
  rank = config.lora.rank
  return lora.LoraConfig(rank, config.lora.alpha, config.lora.targets) if rank else None


def trainable(config: ConfigDict, params):
  """The trainable parameters before the first step: a copy of the reference, or adapters that change nothing yet."""
  adapters = lora_config(config)
  if adapters is None:
    return jax.tree.map(jax.numpy.copy, params)
  return lora.init(jax.random.fold_in(jax.random.key(config.seed), _ADAPTERS), params, adapters)


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


def _with_compute(config: ConfigDict, model_config: ModelConfig) -> ModelConfig:
  return dataclasses.replace(
    model_config,
    compute_dtype=config.compute.dtype,
    attention=config.compute.attention,
    token_stats=config.compute.token_stats,
    remat=config.compute.remat,
    kv_cache=config.compute.kv_cache,
    max_length=config.data.max_prompt_length + config.sampling.max_response_length,
  )


def _check_reference_memory(config: ConfigDict) -> None:
  if config.compute.reference_memory == "host" and config.lora.rank:
    raise InputError(
      "compute.reference_memory=host with lora.rank: the reference beneath the adapters is the policy, needed all the"
      " time; set it to device"
    )


def _beside_reference(adapters, ref_params):
  return lora.apply(ref_params, adapters)


# Folded into the run's key for the adapters' first values: no step has this number.
_ADAPTERS = 2**31
