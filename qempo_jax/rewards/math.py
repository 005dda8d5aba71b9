r"""Answers to mathematical problems, such as GSM8K and MATH, judged by math-verify in killable processes.

    math_reward(prompts, completions, answer=["#### 72", "\\frac{1}{2}"])      # or solution=[...]

An answer that could not be judged (time, memory, an exception) scores None, is counted and logged; it is never a silent
0.

Source: "Training Verifiers to Solve Math Word Problems" (Cobbe et al., arXiv 2110.14168, GSM8K); "Measuring
Mathematical Problem Solving With the MATH Dataset" (Hendrycks et al., arXiv 2103.03874); math-verify,
https://github.com/huggingface/Math-Verify.
"""

import collections
from collections.abc import Sequence
import decimal
import logging
import numbers
import os
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.rewards import math_text
from qempo_jax.rewards import math_workers
from qempo_jax.rewards import texts

_LOG = logging.getLogger(__name__)
_MAX_CHARS = 20_000  # End of a completion, with the final answer.


class MathReward:
  """1.0 for a right final answer, 0.0 for a wrong or missing one, None if unknown.

  Attributes:
    counts: Counter of right, wrong, no_answer (also wrong), not_text, timeout, crash and the other failures by name.
  """

  __name__ = "math"

  def __init__(
    self,
    *,
    num_workers: int | None = None,
    timeout: float = 10.0,
    memory_mb: int = 1024,
    on_failure: float | None = None,
  ):
    """Stores the settings; processes start at the first call.

    Args:
      num_workers: number of processes; None: the machine's cores, at most 8.
      timeout: wall-clock seconds for each answer.
      memory_mb: address space of each process, MiB.
      on_failure: score of an answer that could not be judged; None: no score.
    """
    self._pool = math_workers.WorkerPool(
      num_workers=num_workers or min(os.cpu_count() or 1, 8), timeout=timeout, memory_mb=memory_mb
    )
    self._on_failure = on_failure
    self.counts = collections.Counter()

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
    r"""Scores each completion.

    Args:
      prompts: not used.
      completions: responses, as text or messages.
      **columns: `answer` (GSM8K's, with or without its working, or LaTeX), or else `solution` (MATH's, with a
        `\\boxed` answer); one a completion.

    Returns:
      One score a completion.

    Raises:
      InputError: there is no such column, a reference is not text, or math-verify is not installed.
    """
    del prompts
    name = "answer" if columns.get("answer") is not None else "solution"
    references = [reference_answer(value) for value in texts.column(name, columns, completions)]
    read = texts.texts_of(completions)
    known = [index for index, text in enumerate(read) if text is not None]
    verdicts = self._pool.judge([(references[i], read[i][-_MAX_CHARS:]) for i in known])
    scores: list[float | None] = [self._on_failure] * len(read)
    failures = collections.Counter({"not_text": len(read) - len(known)})
    for index, verdict in zip(known, verdicts):
      if verdict.failure:
        failures[verdict.failure] += 1
        continue
      scores[index] = float(verdict.right)
      self.counts["right" if verdict.right else "wrong" if verdict.found else "no_answer"] += 1
    failures = +failures
    self.counts.update(failures)
    if failures:
      listed = ", ".join(f"{count} {kind}" for kind, count in failures.most_common())
      _LOG.warning("%d of %d answers could not be judged: %s", failures.total(), len(read), listed)
    return scores

  def take_counts(self) -> dict[str, int]:
    """Counts since the last call, by name; resets them."""
    counts, self.counts = dict(self.counts), collections.Counter()
    return counts

  def close(self) -> None:
    """Ends the processes."""
    self._pool.close()


def reference_answer(reference: Any) -> str:
  r"""Final answer of a reference text: in `<answer>` tags, the last `\\boxed{}` or `#### number`; else the text.

  Args:
    reference: text, or a number, which is written in digits without an exponent.

  Raises:
    InputError: the reference is neither a text nor a finite number, or is empty.
  """
  if isinstance(reference, (numbers.Real, decimal.Decimal)) and not isinstance(reference, (bool, numbers.Rational)):
    number = decimal.Decimal(str(reference))
    reference = format(number, "f") if number.is_finite() else None
  elif isinstance(reference, numbers.Rational) and not isinstance(reference, bool):
    reference = str(reference)
  if not isinstance(reference, str) or not reference.strip():
    raise InputError(f"the reference answer {reference!r:.60} is not a text or finite number; give every row an answer")
  part = math_text.region(reference)
  said, kind = math_text.statement(part)
  return said if kind in ("box", "mark") and said.strip() else part.strip()


_DEFAULT: list[MathReward] = []


def math_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns) -> list[float | None]:
  """`MathReward` with its defaults; one pool for the whole process."""
  if not _DEFAULT:
    _DEFAULT.append(MathReward())
  return _DEFAULT[0](prompts, completions, **columns)


def take_counts() -> dict[str, int]:
  """`MathReward.take_counts` of `math_reward`."""
  return _DEFAULT[0].take_counts() if _DEFAULT else {}


math_reward.take_counts = take_counts
