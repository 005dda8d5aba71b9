"""Exact figures of a policy on prompts whose right answers are all listed, beside those of its samples."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from experiments.plan import Policy
from experiments.plan import Sampling
from qempo_jax import response_trees
from qempo_jax import sharding
from qempo_jax.data import pair_tokens
from qempo_jax.data import templates
from qempo_jax.data.prompts import Row
from qempo_jax.evaluation import exact_answers
from qempo_jax.rewards import answers

DRAWS = 64  # k of the expected distinct answers, besides the samples of a prompt
TOLERANCE = 1e-3  # most probability of unlikely branches left out, a prompt


class ListedAnswers:
  """Scores the listed right responses of prompts under policies; prompts of one answer set share a tree."""

  def __init__(
    self,
    policy: Policy,
    sampling: Sampling,
    batch: int,
    encoder: pair_tokens.Encoder,
    *,
    forms: Callable[[str], Mapping[str, str]] | None = None,
    tolerance: float = TOLERANCE,
  ):
    """Prepares to score.

    Args:
      policy: the model and tokenizer.
      sampling: settings of sampling and scoring.
      batch: prompts scored at once.
      encoder: of the tokenizer.
      forms: from the name of an answer set to its texts, and the answer that each gives; None for `written_forms`.
      tolerance: most probability of unlikely branches left out, a prompt; 0 scores all.
    """
    self._policy, self._sampling, self._batch, self._encoder = policy._replace(params=None), sampling, batch, encoder
    self._forms, self._tolerance = forms or answers.written_forms, tolerance
    self._listed: dict[tuple[str, str], tuple[dict, response_trees.ResponseTree]] = {}
    score = functools.partial(
      response_trees.score_trees,
      config=policy.config,
      temperature=sampling.temperature,
      transform=sampling.transform,
    )
    self._score = jax.jit(sharding.on_mesh(lambda params, batch: score(params, batch=batch), policy.mesh))

  def log_probs(self, params: Any, rows: Sequence[Row]) -> list[tuple[dict[tuple[int, ...], str], np.ndarray, float]]:
    """Of each prompt: answers by response, their log-probabilities in nats, and the probability left out.

    Args:
      params: the policy.
      rows: prompts with `set_name`.
    """
    found = []
    for start in range(0, len(rows), self._batch):
      some = rows[start : start + self._batch]
      batch = [*some, *[some[0]] * (self._batch - len(some))]  # one shape is compiled
      prompts = [self._encoder.prompt(row["prompt"], templates.options_of(row)) for row in batch]
      listed = list(map(self._listed_of, batch))
      place = lambda arrays: sharding.place(arrays, sharding.rows_sharding(self._policy.mesh, self._batch))
      score = lambda arrays, place=place: sharding.to_host(self._score(params, place(arrays)))
      scored = response_trees.log_probs(score, prompts, [tree for _, tree in listed], tolerance=self._tolerance)
      found += [(responses, *of_prompt) for _, (responses, _), of_prompt in zip(some, listed, scored)]
    return found

  def _listed_of(self, row: Row) -> tuple[dict[tuple[int, ...], str], response_trees.ResponseTree]:
    """The right responses to a prompt, and their tree; alike for prompts of one set that end alike."""
    options = templates.options_of(row)
    key = row["set_name"], self._encoder.ending(row["prompt"], options)
    if key not in self._listed:
      forms = self._forms(row["set_name"])
      responses = exact_answers.right_responses(
        forms,
        self._encoder.bodies(row["prompt"], list(forms), options),
        stop_tokens=self._policy.stop_tokens,
        max_length=self._sampling.max_response_length,
        forbidden=self._policy.config.forbidden,
      )
      self._listed[key] = responses, response_trees.tree_of(list(responses))
    return self._listed[key]


def of_prompts(
  listed: ListedAnswers, params: Any, rows: Sequence[Row], samples: Sequence[Sequence[dict]]
) -> list[dict[str, float]]:
  """By name the exact figures of each prompt; empty where the answers are not listed.

  Args:
    listed: scores the right responses.
    params: the policy.
    rows: prompts with their columns.
    samples: of each prompt the finished rows of its samples, for the part that needs samples.
  """
  known = [index for index, row in enumerate(rows) if answers.known(row.get("set_name"))]
  found: list[dict[str, float]] = [{} for _ in rows]
  for index, scored in zip(known, listed.log_probs(params, [rows[index] for index in known])):
    found[index] = _figures(*scored, samples[index])
  return found


def _figures(
  responses: dict[tuple[int, ...], str], log_probs: np.ndarray, left_out: float, samples: Sequence[dict]
) -> dict[str, float]:
  """Exact figures, and from samples the wrong responses' part of the entropy and right ones that are not listed."""
  draws = sorted({DRAWS, len(samples)})
  exact = exact_answers.figures(log_probs, list(responses.values()), draws=draws)
  listed = np.array([tuple(row["token_ids"]) in responses for row in samples])
  wrong = exact_answers.wrong_entropy(
    np.array([row["log_prob"] for row in samples]), listed, acceptable=exact.acceptable
  )
  return {
    "acceptable": exact.acceptable,
    "effective_answers": exact.effective_answers,
    **{f"distinct@{k}": float(count) for k, count in zip(draws, exact.distinct)},
    "entropy_accept": exact.entropy_accept,
    "entropy_right": exact.entropy_right,
    "entropy_wrong": wrong,
    "left_out": left_out,
    "unlisted": float(np.mean([row["answer"] is not None for row in samples] & ~listed)),
  }
