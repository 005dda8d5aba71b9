"""Diversity and quality of solutions: pass@k and majority@k."""

from collections.abc import Hashable
from collections.abc import Sequence

import numpy as np

from qempo_jax.errors import InputError


def pass_at_k(num_samples: np.ndarray, num_correct: np.ndarray, *, k: int) -> np.ndarray:
  """Probability that at least one of k samples drawn without replacement is correct: unbiased for pass@k.

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1..n} (1 - k / i),

  computed as a product in log space, without overflow of binomial coefficients. Chen et al., "Evaluating Large Language
  Models Trained on Code", https://arxiv.org/abs/2107.03374. Range [0, 1]; average it over prompts. Drawing with
  replacement would be biased low. It does not measure how correct samples differ.

  Args:
    num_samples: [prompts] samples of each prompt.
    num_correct: [prompts] correct samples of each prompt.
    k: number of draws.

  Returns:
    [prompts] estimates.

  Raises:
    InputError: a prompt has fewer than k samples, or more correct ones than samples.
  """
  samples, correct = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
  if k < 1 or samples.min(initial=k) < k:
    raise InputError(f"pass@{k} needs 1 <= k <= samples, and a prompt has {samples.min(initial=k)}: sample more.")
  if np.any((correct < 0) | (correct > samples)):
    raise InputError("pass@k got more correct samples than samples, or fewer than none: count them again.")
  kept = {}
  for n, c in {(int(n), int(c)) for n, c in zip(samples.ravel(), correct.ravel(), strict=True)}:
    with np.errstate(divide="ignore"):
      ratios = k / np.arange(n - c + 1, n + 1)
      kept[n, c] = 1.0 if n - c < k else -np.expm1(np.sum(np.log1p(-ratios)))
  flat = [kept[int(n), int(c)] for n, c in zip(samples.ravel(), correct.ravel(), strict=True)]
  return np.array(flat, float).reshape(samples.shape)


def majority_at_k(
  answers: Sequence[Hashable | None], correct: Sequence[bool], *, k: int, num_draws: int = 1000, seed: int = 0
) -> float:
  """Probability that the most frequent answer of k samples drawn without replacement is correct.

  Wang et al., "Self-Consistency Improves Chain of Thought Reasoning", https://arxiv.org/abs/2203.11171. Ties count by
  the share of correct answers among the tied. None is no answer and has no vote; draws without any vote are wrong. It
  is exact for k = 1 and for k = all samples, otherwise the mean over `num_draws` draws (standard error at most 0.5 /
  sqrt(num_draws)). Range [0, 1]; it rewards concentration, so read it with a diversity figure.

  Args:
    answers: answers of one prompt's samples, equal if they agree.
    correct: True for correct samples; samples with one answer must agree on it.
    k: samples a vote.
    num_draws: number of votes, if they are drawn.
    seed: seed of the draws.

  Raises:
    InputError: k is not between 1 and the number of samples, or one answer is both correct and wrong.
  """
  if len(answers) != len(correct):
    raise InputError(f"majority@k got {len(answers)} answers and {len(correct)} verdicts: give one a sample.")
  if not 1 <= k <= len(answers):
    raise InputError(f"majority@{k} needs 1 <= k <= samples, and there are {len(answers)}: sample more.")
  verdicts, counts = {}, {}
  for answer, verdict in zip(answers, correct, strict=True):
    counts[answer] = counts.get(answer, 0) + 1
    if answer is not None and verdicts.setdefault(answer, bool(verdict)) != bool(verdict):
      raise InputError(f"The answer {answer!r} is both correct and wrong: verdicts must follow the answer.")
  no_vote = counts.pop(None, 0)
  if not counts:
    return 0.0
  right = np.array([verdicts[answer] for answer in counts])
  sizes = np.array([*counts.values(), no_vote])
  if k == 1:
    return float(sizes[:-1][right].sum() / sizes.sum())
  if k == len(answers):
    votes = sizes[None]
  else:
    votes = np.random.default_rng(seed).multivariate_hypergeometric(sizes, k, size=num_draws, method="marginals")
  votes = votes[:, :-1]
  leading = (votes == votes.max(axis=1, keepdims=True)) & (votes > 0)
  return float(np.mean((leading & right).sum(axis=1) / np.maximum(1, leading.sum(axis=1))))
