"""Fresh samples of a policy on given rows, as evaluation rows."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import NamedTuple

import jax
import numpy as np

from experiments import samples as samples_lib
from experiments.measure import exact_figures
from experiments.plan import Policy
from experiments.plan import Sampling
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax import sharding
from qempo_jax.data import columns
from qempo_jax.data import pair_tokens
from qempo_jax.data import templates
from qempo_jax.data.prompts import Row
from qempo_jax.rewards import answers
from qempo_jax.rewards import checked


class Settings(NamedTuple):
  """Settings of an evaluation.

  Attributes:
    samples_per_prompt: samples of each prompt.
    prompts_per_batch: prompts sampled at once.
    seed: of the samples; the same for every policy.
    cluster: columns whose values are families of prompts.
    exact: True scores all listed right answers.
    least: least possible reward, which samples that could not be judged get.
  """

  samples_per_prompt: int
  prompts_per_batch: int
  seed: int
  cluster: tuple[str, ...]
  exact: bool = False
  least: float = 0.0


class Evaluator:
  """Samples policies on the same rows with the same random numbers, and scores them under the reference."""

  def __init__(
    self,
    policy: Policy,
    rows: Sequence[Row],
    judges: Mapping[str, Callable],
    sampling: Sampling,
    settings: Settings,
  ):
    """Prepares for these rows.

    Args:
      policy: the reference.
      rows: the prompts with their columns.
      judges: reward functions by the name of their field, "reward" among them.
      sampling: settings of sampling and scoring.
      settings: of the evaluation.
    """
    self._policy, self._judges, self._sampling, self._settings = policy, judges, sampling, settings
    self._sample = samples_lib.GroupSampler(policy, sampling, rows)
    self.dropped, self.max_prompt_length = self._sample.dropped, sampling.max_prompt_length
    self._score = jax.jit(scoring.score_groups, static_argnames=_STATIC)
    self._encoder = pair_tokens.Encoder(policy.tokenizer)
    self._listed = exact_figures.ListedAnswers(policy, sampling, settings.prompts_per_batch, self._encoder)

  def __call__(self, params, *, method: str, seed: int, exact: bool = True) -> list[dict]:
    """One dict a sample: see `evaluation.summary` for the fields. The first of each prompt has its exact figures.

    Args:
      params: the policy.
      method: its label.
      seed: the training seed that made it.
      exact: whether to compute the exact figures that the settings ask for.
    """
    found = list(itertools.chain.from_iterable(self.batches(params, method=method, seed=seed, exact=exact)))
    return self.without_nan(found)

  def batches(self, params, *, method: str, seed: int, exact: bool = True, first: int = 0) -> Iterator[list[dict]]:
    """The same, a batch of prompts at a time, from prompt number `first` on; NaN is the reward of what nobody could judge."""
    settings = self._settings
    every = self._sample.rows
    tasks = columns.tell_apart([(row["split"], row["prompt"]) for row in every], list(map(columns.whole_task, every)))
    rng = jax.random.fold_in(jax.random.key(settings.seed), 0)
    for start in range(first, len(self._sample.rows), settings.prompts_per_batch):
      rows = list(self._sample.rows[start : start + settings.prompts_per_batch])
      missing = settings.prompts_per_batch - len(rows)
      samples = self._sample(params, rows + rows[:1] * missing, rng, settings.samples_per_prompt, first=start)
      scores = {name: samples_lib.group_rewards(judge, samples) for name, judge in self._judges.items()}
      ref_log_probs = self._reference(samples)
      groups = []
      for index in range(len(rows)):
        labels = {"method": method, "seed": seed} | ({"task": tasks[start + index]} if tasks[start + index] else {})
        labels |= {name: rows[index][name] for name in settings.cluster if name in rows[index]}
        groups.append(list(_rows_of(samples, index, scores, ref_log_probs, labels, self._encoder)))
      if (
        settings.exact and exact and not self._sampling.stop_strings
      ):  # which end right answers in ways that are not listed
        of_prompts = exact_figures.of_prompts(self._listed, params, rows, groups)
        groups = [[group[0] | ({"exact": of} if of else {}), *group[1:]] for group, of in zip(groups, of_prompts)]
      yield list(itertools.chain.from_iterable(groups))

  def without_nan(self, found: list[dict]) -> list[dict]:
    """Rows of `batches`, with the least reward for what could not be judged."""
    for name in self._judges:
      rewards = checked.least_for_unscored(np.array([row[name] for row in found]), self._settings.least)
      for row, value in zip(found, rewards.tolist(), strict=True):
        row[name] = value
    return found

  def _reference(self, samples) -> np.ndarray:
    """Log-probability of every response under the reference: [P, G] nats."""
    packed = packing.pack_groups(samples.prompts, samples.responses, bucket=self._sampling.bucket)
    stats = self._score(
      sharding.fetched(self._policy.params),
      self._policy.config,
      packed,
      group_size=len(samples.responses[0]),
      max_length=self._sampling.max_response_length,
      temperature=self._sampling.temperature,
      chunk_size=self._sampling.chunk_size,
      transform=self._sampling.transform.untruncated(),
    )
    return np.asarray(stats.log_prob.sum(-1))


_STATIC = ("config", "group_size", "max_length", "chunk_size", "transform")


def _rows_of(samples, index, scores, ref_log_probs, labels, encoder):
  row, rollout = samples.rows[index], samples.rollout
  for sample, (text, ids) in enumerate(zip(samples.texts[index], samples.responses[index])):
    at = (index, sample)
    set_name = answers.known(row.get("set_name"))
    yield labels | {
      "split": row["split"],
      "set_name": set_name,
      "prompt": _text(row["prompt"]),
      "sample": sample,
      "completion": text,
      "token_ids": ids.tolist(),
      "noncanonical": not encoder.is_canonical(row["prompt"], ids, text, templates.options_of(row)),
      "answer": answers.parse_answer(text, set_name) if set_name else None,
      **{name: float(found[at]) for name, found in scores.items()},
      "unscored": bool(np.isnan(scores["reward"][at])),
      "log_prob": float(rollout.log_probs[at].sum()),
      "ref_log_prob": float(ref_log_probs[at]),
      "entropy": float(rollout.entropies[at].sum()),
      "num_tokens": int(rollout.mask[at].sum()),
      "truncated": bool(rollout.truncated[at]),
    }


def _text(prompt) -> str:
  """A conversation as one text; a prompt that is one stays."""
  if isinstance(prompt, str):
    return prompt
  return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
