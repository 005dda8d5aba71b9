"""The report's completions side by side: answers of each policy alone, and differences between the texts."""

from collections.abc import Mapping
from collections.abc import Sequence
import difflib
import re

from qempo_jax.evaluation import pages
from qempo_jax.evaluation.rows import task_name

_LONGEST_COMPLETION = 240
_COMPLETIONS = 8
_ANSWERS = 40
_WORDS = re.compile(r"\s+|[^\s]+")


def section(rows: Sequence[Mapping], split: str, answers: Mapping) -> dict:
  """One split's prompt: groups of answers, then one column of completions per policy.

  Args:
    rows: the evaluation rows.
    split: split of the prompt.
    answers: that split's entry of the results' `answers`.
  """
  columns, first = [], []
  for method in answers["methods"]:
    found = [row for row in rows if (row["method"], row["split"], task_name(row)) == (method, split, answers["prompt"])]
    found = sorted(found, key=lambda row: (row["seed"], row["sample"]))[:_COMPLETIONS]
    before = [row["completion"] for row in first] + [None] * len(found)
    samples = [
      (f"{row['reward']:.2g}", marked(shorten(row["completion"]), text))
      for row, text in zip(found, before, strict=False)
    ]
    columns.append((pages.label(method), samples))
    first = first or found
  return {
    "title": pages.title(split),
    "prompt": shorten(answers["prompt"]),
    "answers": answer_groups(answers),
    "columns": columns,
  }


def answer_groups(answers: Mapping) -> list[tuple[str, int, list[str], str]]:
  """Each acceptable answer once, grouped by the policies that gave it, from those of all to those of one.

  Returns:
    Rows of (policies, number of answers, first answers, remark on the rest); empty for a single policy.
  """
  owners: dict[str, tuple[str, ...]] = {}
  for method, entry in answers["methods"].items():
    for answer in dict(entry["counts"]):
      owners[answer] = (*owners.get(answer, ()), method)
  groups: dict[tuple[str, ...], list[str]] = {}
  for answer, methods in owners.items():
    groups.setdefault(methods, []).append(answer)
  num_methods = len(answers["methods"])
  if num_methods < 2:
    return []
  found = []
  for methods, names in sorted(groups.items(), key=lambda item: (-len(item[0]), item[0])):
    policies = ("Only " if len(methods) == 1 else "") + " and ".join(map(pages.label, methods))
    rest = f" and {len(names) - _ANSWERS} more" if len(names) > _ANSWERS else ""
    shown = [shorten(name, 60) for name in names[:_ANSWERS]]
    found.append(("All" if len(methods) == num_methods else policies, len(names), shown, rest))
  return found


def marked(text: str, before: str | None) -> list[tuple[str, bool]]:
  """Pieces of the text with a flag for new words, which a longest-match diff does not find in `before`."""
  if before is None:
    return [(text, False)]
  ours, theirs = _WORDS.findall(text), _WORDS.findall(before)
  pieces = []
  for kind, _, _, start, end in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
    piece = "".join(ours[start:end])
    pieces.append((piece, kind in ("insert", "replace") and bool(piece.strip())))
  return pieces


def shorten(text: str, length: int = _LONGEST_COMPLETION) -> str:
  """At most `length` characters, with an ellipsis if some are dropped."""
  return text if len(text) <= length else text[:length] + "…"
