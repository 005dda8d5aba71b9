"""Typed values of a run: policy, settings, and the plan of its computation, which needs neither data nor a state."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax

from qempo_jax import sharding
from qempo_jax.constraints import Constraint
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.models.config import ModelConfig
from qempo_jax.train.offline_step import OfflineObjective
from qempo_jax.train.online_step import OnlineObjective
from qempo_jax.train.online_step import Optimizers


class Policy(NamedTuple):
  """A pretrained model with its tokenizer, placed on the mesh.

  Attributes:
    config: the decoder's shape.
    params: its parameters, sharded.
    tokenizer: its tokenizer.
    stop_tokens: ids that end a response.
    mesh: the devices.
    name: of the model, as the config has it.
    source: path of the model's files.
  """

  config: ModelConfig
  params: Any
  tokenizer: Any
  stop_tokens: tuple[int, ...]
  mesh: jax.sharding.Mesh
  name: str = ""
  source: str = ""


class Sampling(NamedTuple):
  """Settings of sampling and scoring.

  Attributes:
    prompts: prompts of an update.
    group_size: samples a prompt.
    max_prompt_length: tokens; longer prompts are left out.
    max_response_length: tokens.
    temperature: of sampler and scorer alike.
    mesh: shape of the devices while sampling; () for that of training.
    slots: samples decoded side by side, 0 for all.
    halvings: times that slots are halved while the last samples finish.
    bucket: multiple to which packed rows are rounded up, tokens.
    chunk_size: tokens whose logits exist at once.
    transform: bias, minimum length and truncation, of sampler and scorer alike.
    stop_strings: texts that end a response.
    function: dotted path or call of a function that samples for training from outside; empty for none.
  """

  prompts: int
  group_size: int
  max_prompt_length: int
  max_response_length: int
  temperature: float
  mesh: tuple[int, ...]
  slots: int
  halvings: int
  bucket: int
  chunk_size: int
  transform: LogitTransform = PLAIN
  stop_strings: tuple[str, ...] = ()
  function: str = ""


class PairSettings(NamedTuple):
  """Settings of training on pairs.

  Attributes:
    per_step: pairs of an update.
    per_row: pairs that share a packed row.
    window: batches sorted by length together; 0 for none.
    measure_every: updates between measurements of the constraints; 0 for never.
    ref_log_probs: True if the reference's log-probs accompany the pairs.
    responses: of an example.
  """

  per_step: int
  per_row: int
  window: int
  measure_every: int
  ref_log_probs: bool
  responses: int


class Plan(NamedTuple):
  """The computation of a run.

  Attributes:
    label: name of the run in reports, logs and certificates.
    steps: parameter updates.
    seed: of the run.
    policy: the reference; its parameters may be shapes.
    objective: of the online or of the offline steps.
    optimizers: the policy's and the multipliers'.
    first_state: the reference's parameters -> the state before the first step.
    as_policy: (trainable parameters, the reference's) -> the policy's parameters.
    adapters: True if adapters are trained beside the reference.
    micro_batches: parts of a batch whose gradients are summed.
    sampling: settings of sampling and scoring.
    replay_size: replayed responses beside each group.
    stale_steps: updates between sampling and learning.
    rewards: names of the rewards that samples get.
    pairs: settings of training on pairs; None online.
    constraints: the run's, without the margins that the controllers aim inside.
  """

  label: str
  steps: int
  seed: int
  policy: Policy
  objective: OnlineObjective | OfflineObjective
  optimizers: Optimizers
  first_state: Callable
  as_policy: Callable
  adapters: bool
  micro_batches: int
  sampling: Sampling
  replay_size: int
  stale_steps: int
  rewards: tuple[str, ...]
  pairs: PairSettings | None
  constraints: Mapping[str, Constraint]

  def abstract_state(self):
    """The state's shapes with their shardings; no memory is taken, an optimizer's least of all."""
    return sharding.abstract(jax.eval_shape(self.first_state, self.policy.params), self.policy.mesh)


def initial(first_state: Callable, params: Any, mesh: jax.sharding.Mesh, rules=sharding.STATE_RULES):
  """(the state before the first step, placed; its shardings)."""
  shardings = sharding.tree_shardings(jax.eval_shape(first_state, params), mesh, rules)
  return jax.jit(first_state, out_shardings=shardings)(sharding.fetched(params)), shardings


def reading_reference(step: Callable, reference) -> Callable:
  """step(state, reference's parameters, ...), these brought from the hosts' memory where `reference` places them there."""
  return lambda state, params, *rest: step(state, sharding.fetched(params, reference), *rest)
