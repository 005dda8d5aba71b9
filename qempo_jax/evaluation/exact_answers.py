"""Exact figures where every right answer is known: of the policy itself, without sampling noise.

With A the listed right responses (token sequences), P = pi(A) and m_a the mass of the responses that give answer a,

  effective answers       exp H(answer | A) = exp -sum_a (m_a / P) log(m_a / P)
  distinct answers of k   sum_a 1 - (1 - m_a)^k
  entropy                 H(Y) = H(accept) + P H(Y | A) + (1 - P) H(Y | not A),   H(accept) = -P log P - (1 - P) log(1 - P)

The third part of the entropy is no sum over a list. It is estimated from samples: (1 - P) H(Y | not A) =
E[1{Y not in A} (-log pi(Y))] + (1 - P) log(1 - P).
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ExactFigures(NamedTuple):
  """Of one policy on one prompt.

  Attributes:
    acceptable: P, probability of a listed right response.
    effective_answers: exp of the entropy over right answers given a right response; 0 if P is 0.
    distinct: expected number of different right answers among k samples.
    entropy_accept: entropy of being right or wrong, nats.
    entropy_right: P times the entropy of right responses, nats.
  """

  acceptable: float
  effective_answers: float
  distinct: np.ndarray
  entropy_accept: float
  entropy_right: float


def right_responses(
  forms: Mapping[str, str],
  tokens: Sequence[Sequence[int]],
  *,
  stop_tokens: Sequence[int],
  max_length: int,
  forbidden: Collection[int] = (),
) -> dict[tuple[int, ...], str]:
  """The responses that say a right answer: with each stop token, or cut where the text has `max_length` tokens.

  Args:
    forms: texts and the answer that each gives.
    tokens: ids of each text, without a token that ends it.
    stop_tokens: ids that end a response.
    max_length: longest response, tokens.
    forbidden: ids that the policy never samples, `ModelConfig.forbidden`.

  Returns:
    Answers by response; texts that are too long, or hold a token that cannot be sampled within one, are left out.
  """
  barred, found = {*stop_tokens, *forbidden}, {}
  for answer, ids in zip(forms.values(), tokens, strict=True):
    if len(ids) > max_length or not barred.isdisjoint(ids):
      continue
    endings = [(stop,) for stop in stop_tokens] if len(ids) < max_length else [()]
    found |= {(*map(int, ids), *ending): answer for ending in endings}
  return found


def figures(log_probs: np.ndarray, answers: Sequence[str], *, draws: Sequence[int]) -> ExactFigures:
  """The exact figures.

  Args:
    log_probs: [R] of the listed right responses, nats.
    answers: [R] answer of each.
    draws: every k of the expected distinct answers.
  """
  names, index = np.unique(np.asarray(answers), return_inverse=True)
  probs = np.exp(np.asarray(log_probs, np.float64))
  mass = np.bincount(index, probs, minlength=len(names))
  right = min(float(mass.sum()), 1.0)
  seen = [-np.expm1(k * np.log1p(-np.minimum(mass, 1 - 1e-12))).sum() for k in draws]
  return ExactFigures(
    right,
    float(np.exp(_entropy(mass / right))) if right else 0.0,
    np.array(seen),
    _entropy(np.array([right, 1 - right])),
    right * _entropy(probs / right) if right else 0.0,
  )


def wrong_entropy(log_probs: np.ndarray, listed: np.ndarray, *, acceptable: float) -> float:
  """(1 - P) H(Y | not A) in nats, estimated without bias from samples of the policy.

  Args:
    log_probs: [n] of samples, nats.
    listed: [n] True for those among the listed right responses A.
    acceptable: P, exact.
  """
  wrong = 1 - acceptable
  outside = np.where(listed, 0.0, -np.asarray(log_probs, np.float64)).mean()
  return float(outside + (wrong * np.log(wrong) if wrong > 0 else 0.0))


def _entropy(probs: np.ndarray) -> float:
  """-sum p log p, with 0 log 0 = 0."""
  return float(-np.sum(np.where(probs > 0, probs * np.log(np.maximum(probs, 1e-300)), 0.0)))
