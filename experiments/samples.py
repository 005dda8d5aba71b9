"""From rows to samples and rewards: the host's side of generation."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.plan import Policy
from experiments.plan import Sampling
from experiments.run import distributed
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.data.prompts import Row
from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import compose
from qempo_jax.sampling import layout
from qempo_jax.sampling import sampler
from qempo_jax.sampling import stop_strings
from qempo_jax.types import PromptBatch
from qempo_jax.types import Rollout


class Samples(NamedTuple):
  """A group of responses to each row.

  Attributes:
    rows: P rows.
    prompts: P prompts as token ids, int32 arrays.
    responses: [P][G] token ids, the ending token included.
    texts: [P][G] responses as text, without the ending token, and up to the stop string that ended one.
    rollout: the same as arrays, on the host.
  """

  rows: Sequence[Row]
  prompts: list[np.ndarray]
  responses: list[list[np.ndarray]]
  texts: list[list[str]]
  rollout: Rollout


class GroupSampler:
  """Samples groups from a policy; prompts are padded to one length, so one shape is compiled."""

  def __init__(self, policy: Policy, settings: Sampling, rows: Sequence[Row]):
    """Prepares to sample for these rows.

    Args:
      policy: the model and tokenizer.
      settings: of sampling.
      rows: every row that may be asked for.
    """
    self._policy, self._settings = policy._replace(params=None), settings
    self._mesh = layout.sampling_mesh(policy.mesh, settings.mesh)
    self._arrangements = {}
    decode = lambda ids: policy.tokenizer.decode(ids, skip_special_tokens=False)
    ending = stop_strings.ending_ids(decode, policy.config.vocab_size, settings.stop_strings)
    self._stop_tokens = (*policy.stop_tokens, *ending)
    limit = settings.max_prompt_length
    encoded = {
      _key(row): np.asarray(_encoded(policy.tokenizer, row, place), np.int32) for place, row in enumerate(rows, start=1)
    }
    self._encoded = {key: ids for key, ids in encoded.items() if len(ids) <= limit}
    self.rows = [row for row in rows if _key(row) in self._encoded]
    self.dropped = len(rows) - len(self.rows)
    if not self.rows:
      raise InputError(
        f"every prompt is longer than data.max_prompt_length={limit} tokens; raise it, or shorten the prompts"
      )
    self._width = packing.round_up(max(map(len, self._encoded.values())), 16)

  def __call__(self, params, rows: Sequence[Row], rng, group_size: int, *, first: int = 0) -> Samples:
    """Samples a group for each row; random numbers depend on `rng`, the row's place after `first`, sample and token."""
    prompts = [self.encode(row) for row in rows]
    batch = sharding.place(self._pad(prompts), sharding.rows_sharding(self._mesh, len(prompts)))
    rollout = sharding.on_mesh(sampler.sample_groups, self._mesh)(
      self._arranged(params),
      self._policy.config,
      batch,
      rng,
      group_size=group_size,
      max_length=self._settings.max_response_length,
      temperature=self._settings.temperature,
      stop_tokens=self._stop_tokens,
      prompt_ids=np.arange(first, first + len(prompts)),
      slots=self._settings.slots,
      halvings=self._settings.halvings,
      transform=self._settings.transform,
    )
    return self.of_rollout(rows, sharding.to_host(rollout))

  def of_rollout(self, rows: Sequence[Row], rollout: Rollout) -> Samples:
    """The rows' samples as text and ids, from the sampler's arrays."""
    decode = lambda ids: tokenization.decode_response(self._policy.tokenizer, ids, self._policy.stop_tokens)
    strings = self._settings.stop_strings
    if strings:
      rollout = stop_strings.cut(rollout, decode, strings)
    responses = [[tokens[mask] for tokens, mask in zip(*group)] for group in zip(rollout.tokens, rollout.mask)]
    texts = [[decode(ids) for ids in group] for group in responses]
    if strings:
      before = lambda text: stop_strings.before(text, strings)
      texts = [[text if before(text) is None else before(text) for text in group] for group in texts]
    return Samples(rows, [self.encode(row) for row in rows], responses, texts, rollout)

  def _arranged(self, params):
    """The parameters laid out for sampling, by a function compiled once for each kind of policy."""
    kind = jax.tree.structure(params)
    if kind not in self._arrangements:
      self._arrangements[kind] = layout.arrangement(params, self._policy.config, self._mesh)
    return self._arrangements[kind](params)

  def encode(self, row: Row) -> np.ndarray:
    """A row's prompt as token ids, in the chat template."""
    return self._encoded[_key(row)]

  def _pad(self, prompts) -> PromptBatch:
    tokens = np.zeros((len(prompts), self._width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
      tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    return PromptBatch(tokens, mask)


def _key(row: Row) -> tuple:
  """Columns that determine a prompt's token ids."""
  return row["prompt"], repr(templates.options_of(row))


def _encoded(tokenizer, row: Row, place: int) -> list[int]:
  prompt = row["prompt"]
  try:
    return tokenization.encode_chat(tokenizer, prompt, templates.options_of(row))
  except InputError as error:
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    raise InputError(f"prompt {place} ({text[:60]!r}): {error}") from error


def group_rewards(function, samples: Samples) -> np.ndarray:
  """The main reward of every sample: [P, G]; NaN where a sample was not scored; by the first process, for all."""
  return distributed.from_first(lambda: group_scores(function, samples)["reward"])


def group_scores(function, samples: Samples) -> dict[str, np.ndarray]:
  """Rewards by name, [P, G] each, "reward" the main one; NaN where a sample was not scored; by this process alone."""
  prompts, completions, columns = _flat(samples)
  shape = (len(samples.rows), -1)
  if not isinstance(function, compose.Composition):
    return {"reward": checked.scores_or_nan(function, prompts, completions, columns).reshape(shape)}
  scores = function.scores(prompts, completions, columns)
  total = scores.total if function.unscored is None else np.nan_to_num(scores.total, nan=function.unscored)
  return {name: np.reshape(values, shape) for name, values in (scores.by_name | {"reward": total}).items()}


def _flat(samples: Samples):
  """(prompts, completions, columns) with one entry a sample."""
  group_size = len(samples.texts[0])
  repeated = [row for row in samples.rows for _ in range(group_size)]
  names = [
    name for name in dict.fromkeys(name for row in samples.rows for name in row) if name not in ("prompt", "completion")
  ]
  columns = {name: [row.get(name) for row in repeated] for name in names}
  columns["completion_ids"] = [np.asarray(ids).tolist() for group in samples.responses for ids in group]
  completions = [text for group in samples.texts for text in group]
  return [row["prompt"] for row in repeated], completions, columns
