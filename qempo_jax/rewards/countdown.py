"""Countdown puzzles: write a number as a calculation with few digits, a small reasoning task with many right answers.

The reward is 1 for two or three digits from 1 to 9 joined by +, - or * with the target as value, such as 2*6+1 for 13,
and 0 for everything else. All 6,804 such calculations are enumerated, so that coverage is exact.

The prompt has three solved puzzles as turns of a conversation: without them a small chat model answers in words. Three
splits with disjoint targets keep training, the choice of settings, and evaluation apart.

Source: the Countdown numbers game as a test of reasoning: Gandhi et al., "Stream of Search", arXiv 2404.03683.
"""

from collections.abc import Sequence
import functools
import itertools
import math
import re
from typing import Any

from qempo_jax.errors import InputError
from qempo_jax.rewards import texts

SYSTEM = "Write each number as a calculation."
EXAMPLES = ((13, "2*6+1"), (9, "5+4"), (11, "8+5-2"))
VALIDATION_TARGETS = (8, 15, 19, 22)
HELDOUT_TARGETS = (6, 7, 10, 14, 17, 18, 21, 24)
TRAIN_TARGETS = (2, 3, 4, 5, 12, 16, 20, 23, 25, 26)
TARGETS = {"train": TRAIN_TARGETS, "validation": VALIDATION_TARGETS, "heldout": HELDOUT_TARGETS}

_CALCULATION = re.compile(r"[1-9](?: ?[-+*] ?[1-9]){1,2}", re.ASCII)
_TERM = re.compile(r"([-+]?)([1-9](?:\*[1-9])*)")


def targets(split: str) -> tuple[int, ...]:
  """Targets of a split; raises InputError for an unknown split."""
  if split not in TARGETS:
    raise InputError(f"Unknown countdown split {split!r}: use one of {', '.join(TARGETS)}.")
  return TARGETS[split]


def prompt(target: int) -> list[dict[str, str]]:
  """The conversation that asks for a target."""
  turns = [{"role": "system", "content": SYSTEM}]
  for number, answer in EXAMPLES:
    turns += [{"role": "user", "content": str(number)}, {"role": "assistant", "content": answer}]
  return [*turns, {"role": "user", "content": str(target)}]


def countdown_reward(
  prompts: Sequence[Any], completions: Sequence[Any], *, target: Sequence[int], **columns
) -> list[float | None]:
  """1.0 for each completion that is a calculation of its target, else 0.0.

  Args:
    prompts: not used.
    completions: responses as text or messages, without special tokens.
    target: the requested number, one a completion.
    **columns: other columns of the data; not used.

  Returns:
    One score a completion; None if it is not text.
  """
  del prompts, columns
  return [
    None if text is None else float(solution(text, number) is not None)
    for text, number in zip(texts.texts_of(completions), target, strict=True)
  ]


def solution(text: str, target: int) -> str | None:
  """Canonical form of a right answer; None for any other text.

  Two calculations are one solution if they differ only in blanks or in the order of summands or factors: the canonical
  form of "5 + 3*2" and "2*3+5" is "2*3+5". Blanks around the whole and one around each sign are allowed.
  """
  return _canonical(_terms(text)) if value(text) == target else None


def value(text: str) -> int | None:
  """Value of a calculation; None for text that is not a calculation of two or three digits."""
  text = text.strip(" \n")
  return _sum(_terms(text)) if _CALCULATION.fullmatch(text) else None


def solutions(target: int) -> frozenset[str]:
  """Canonical forms of every right answer."""
  return frozenset(_by_value().get(target, {}).values())


def written_forms(target: int) -> dict[str, str]:
  """Every right text, with and without each blank beside a sign, and the canonical form of its solution."""
  found = {}
  for text, canonical in _by_value().get(target, {}).items():
    choices = [[sign, f" {sign}", f"{sign} ", f" {sign} "] if sign in "+-*" else [sign] for sign in text]
    found |= dict.fromkeys(map("".join, itertools.product(*choices)), canonical)
  return found


@functools.cache
def _by_value() -> dict[int, dict[str, str]]:
  """By value every calculation without blanks, and its canonical form."""
  found = {}
  for count in (2, 3):
    for digits in itertools.product("123456789", repeat=count):
      for signs in itertools.product("+-*", repeat=count - 1):
        text = "".join(itertools.chain(*zip(digits, (*signs, ""))))
        terms = _terms(text)
        found.setdefault(_sum(terms), {})[text] = _canonical(terms)
  return found


def _terms(text: str) -> list[tuple[str, list[int]]]:
  """Summands of a calculation: (sign, factors) each."""
  plain = text.replace(" ", "").strip()
  return [(sign or "+", sorted(map(int, product.split("*")))) for sign, product in _TERM.findall(plain)]


def _sum(terms) -> int:
  return sum((-1 if sign == "-" else 1) * math.prod(factors) for sign, factors in terms)


def _canonical(terms) -> str:
  """Summands in order, positive ones first, and factors in order within each."""
  ordered = sorted(terms, key=lambda term: (term[0] == "-", -len(term[1]), term[1]))
  return "".join(sign + "*".join(map(str, factors)) for sign, factors in ordered).removeprefix("+")
