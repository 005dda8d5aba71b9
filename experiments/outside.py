"""Rollouts from outside: a function of the user's, such as a client of an inference server, samples for online training.

Its responses are scored by the policy that trains, and weighted by pi(y) / pi_behaviour(y), clipped at
`sampling.max_importance`. The behaviour policy's log-probs are the function's; where it gives none, its samples are taken
for the policy's own, and the policy that it was given scores them.
"""

from collections.abc import Callable
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from experiments import samples
from experiments.plan import Policy
from experiments.plan import Sampling
from qempo_jax import call_text
from qempo_jax import errors
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax import sharding
from qempo_jax.data.prompts import Row
from qempo_jax.errors import InputError
from qempo_jax.models import export
from qempo_jax.types import Rollout

_KEY = "sampling.function"


class Weights(NamedTuple):
  """The policy for a rollout function: its parameters, or the folder that `save` writes.

  Attributes:
    params: parameters of the decoder, sharded.
    policy: its config, tokenizer, stop tokens and source; without parameters.
  """

  params: Any
  policy: Policy

  def save(self, folder: str | pathlib.Path, dtype: str = "float32") -> pathlib.Path:
    """Exports the policy for PyTorch transformers and servers that read its format; the folder must be absent or empty."""
    policy = self.policy
    return export.export_model(
      folder, self.params, policy.config, tokenizer=policy.tokenizer, source=policy.source, dtype=dtype
    )


def resolve(text: str) -> Callable:
  """The function that `sampling.function` names by dotted path, or that a call such as mine.Server(url="...") makes.

  Raises:
    InputError: it cannot be imported or made.
  """
  path, arguments, keywords = call_text.parse(text, _KEY)
  found = call_text.load(path, _KEY)
  if arguments is not None:
    try:
      found = found(*arguments, **keywords)
    except TypeError as error:
      raise InputError(f"{_KEY}={text!r} cannot be made: {error}; correct its settings") from error
  if not callable(found):
    raise InputError(f"{_KEY}={text!r} is no function of (weights, prompts, rng)")
  return found


class OutsideSampler(samples.GroupSampler):
  """A group sampler whose responses come from the function.

  It calls function(weights, prompts, rng, group_size=G, max_length=T, temperature=t) with P prompts as token ids and a
  `numpy.random.Generator`. The function returns (token ids [P][G], log-probs [P][G] of each token, or None). A response is
  cut after its first stop token. One with a token that the policy never samples is left out: its slot stays empty. A batch
  of nothing else, a token id that the model lacks, and whatever the function raises end the run in one line.
  """

  def __init__(self, policy: Policy, settings: Sampling, rows: Sequence[Row], function: Callable):
    """Prepares for these rows; arguments as those of `GroupSampler`."""
    super().__init__(policy, settings, rows)
    self._function = function
    self._score = jax.jit(
      sharding.on_mesh(scoring.score_groups, policy.mesh),
      static_argnames=("config", "group_size", "max_length", "chunk_size"),
    )

  def __call__(self, params, rows: Sequence[Row], rng, group_size: int, *, first: int = 0) -> samples.Samples:
    """A group for each row."""
    prompts = [self.encode(row) for row in rows]
    seed = [int(word) for word in np.asarray(jax.random.key_data(rng)).ravel()]
    options = {"group_size": group_size, "max_length": self._settings.max_response_length}
    generator = np.random.default_rng([*seed, first])
    with errors.user_code(f"{_KEY} raised", "mend the function, or what it asks"):
      found = self._function(
        Weights(params, self._policy), prompts, generator, temperature=self._settings.temperature, **options
      )
    with errors.user_code(
      f"{_KEY} returned what cannot be read:",
      "return token ids [prompts][group_size], alone or with a log-prob of each",
    ):
      responses, log_probs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
      rollout = self._rollout(responses, log_probs, len(prompts), group_size)
    if log_probs is None:
      groups = [[tokens[mask] for tokens, mask in zip(*group)] for group in zip(rollout.tokens, rollout.mask)]
      packed = packing.pack_groups(prompts, groups, bucket=self._settings.bucket)
      scoring_options = {"temperature": self._settings.temperature, "chunk_size": self._settings.chunk_size}
      stats = self._score(params, config=self._policy.config, packed=packed, **options, **scoring_options)
      rollout = rollout.replace(log_probs=sharding.to_host(stats.log_prob))
    return self.of_rollout(rows, rollout)

  def _rollout(self, responses, log_probs, prompts: int, group_size: int) -> Rollout:
    shape = (prompts, group_size, self._settings.max_response_length)
    tokens, mask, numbers = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32)
    config, stops = self._policy.config, self._policy.stop_tokens
    count = config.vocab_size if config.num_tokens is None else config.num_tokens
    if len(responses) != prompts or any(len(group) != group_size for group in responses):
      raise InputError(f"{_KEY} returned other than {group_size} responses to each of {prompts} prompts")
    for at in np.ndindex(shape[:2]):
      ids = np.asarray(responses[at[0]][at[1]], np.int64)[: shape[-1]]
      ids = ids[: next((place + 1 for place, id_ in enumerate(ids) if id_ in stops), len(ids))]
      if foreign := ids[(ids < 0) | (ids >= config.vocab_size)].tolist():
        raise InputError(
          f"{_KEY} returned the token id {foreign[0]}, which the model does not have ({config.vocab_size} ids): let it use"
          " this model's tokenizer"
        )
      if ((ids >= count) | np.isin(ids, config.forbidden)).any():
        continue
      tokens[at][: len(ids)], mask[at][: len(ids)] = ids, True
      if log_probs is not None:
        given = np.asarray(log_probs[at[0]][at[1]], np.float64)[: len(ids)]
        if len(given) != len(ids) or not np.isfinite(given).all():
          raise InputError(
            f"{_KEY} returned {len(given)} finite log-probs to a response of {len(ids)} tokens; give one each"
          )
        numbers[at][: len(ids)] = given
    if not mask.any():
      raise InputError(
        f"{_KEY} returned no response that can be trained on: all are empty, or have tokens that the policy never samples"
      )
    truncated = ~np.isin(np.where(mask, tokens, -1), stops).any(-1)
    return Rollout(tokens, mask, numbers, np.full(shape, np.nan, np.float32), truncated)
