"""The report's completions side by side: answers of each policy alone, and differences between the texts."""

from collections.abc import Mapping
from collections.abc import Sequence
import difflib
import re

from qempo_jax.evaluation import page_style
from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS
from qempo_jax.evaluation.rows import task_name

INTRODUCTION = (
  '<p class="soft">The first samples of one prompt a split, the number is the reward. Words that the first policy\'s'
  " sample in the same place lacks are <ins>marked</ins>.</p>"
)
_LONGEST_COMPLETION = 240
_COMPLETIONS = 8
_ANSWERS = 40
_WORDS = re.compile(r"\s+|[^\s]+")


def section(rows: Sequence[Mapping], split: str, answers: Mapping) -> str:
  """One split's prompt: the diff of answers, then one column of completions a policy.

  Args:
    rows: the evaluation rows.
    split: split of the prompt.
    answers: that split's entry of the results' `answers`.
  """
  texts = {}
  for method in answers["methods"]:
    cell = (method, split, answers["prompt"])
    samples = [row for row in rows if (row["method"], row["split"], task_name(row)) == cell]
    texts[method] = sorted(samples, key=lambda row: (row["seed"], row["sample"]))[:_COMPLETIONS]
  first = next(iter(texts), None)
  columns = []
  for method, samples in texts.items():
    items = []
    for index, row in enumerate(samples):
      before = texts[first][index]["completion"] if method != first and index < len(texts[first]) else None
      shown = marked(shorten(row["completion"]), before)
      items.append(f'<li><span class="mark">{row["reward"]:.2g}</span><bdi>{shown}</bdi></li>')
    columns.append(f'<div><b>{_label(method)}</b><ol class="samples">{"".join(items)}</ol></div>')
  title = SPLIT_LABELS.get(split, split)
  prompt = page_style.escape(shorten(answers["prompt"]))
  return (
    f"<h3>{page_style.escape(title[:1].upper() + title[1:])}: “<bdi>{prompt}</bdi>”</h3>"
    f'{answer_diff(answers)}<div class="columns">{"".join(columns)}</div>'
  )


def answer_diff(answers: Mapping) -> str:
  """Each acceptable answer once, grouped by the policies that gave it, from those of all to those of one."""
  given = {method: dict(entry["counts"]) for method, entry in answers["methods"].items()}
  owners: dict[str, list[str]] = {}
  for method, counts in given.items():
    for answer in counts:
      owners.setdefault(answer, []).append(method)
  groups: dict[tuple[str, ...], list[str]] = {}
  for answer, of_answer in owners.items():
    groups.setdefault(tuple(of_answer), []).append(answer)
  if not groups or len(given) < 2:
    return ""
  lines = []
  for methods, names in sorted(groups.items(), key=lambda item: (-len(item[0]), item[0])):
    who = (
      "All"
      if len(methods) == len(given)
      else ("Only " if len(methods) == 1 else "") + " and ".join(map(_label, methods))
    )
    keys = "".join(f'<span class="key">{page_style.escape(shorten(name, 60))}</span>' for name in names[:_ANSWERS])
    rest = f" and {len(names) - _ANSWERS} more" if len(names) > _ANSWERS else ""
    lines.append(f"<li><b>{who}</b> ({len(names)}): <bdi>{keys}</bdi>{rest}</li>")
  return f'<ul class="warnings">{"".join(lines)}</ul>'


def marked(text: str, before: str | None) -> str:
  """The text as HTML, with the words marked that a longest-match diff does not find in `before`; all escaped."""
  if before is None:
    return page_style.escape(text)
  ours, theirs = _WORDS.findall(text), _WORDS.findall(before)
  parts = []
  for kind, _, _, start, end in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
    piece = page_style.escape("".join(ours[start:end]))
    parts.append(f"<ins>{piece}</ins>" if kind in ("insert", "replace") and piece.strip() else piece)
  return "".join(parts)


def shorten(text: str, length: int = _LONGEST_COMPLETION) -> str:
  """At most `length` characters, with an ellipsis if some are dropped."""
  return text if len(text) <= length else text[:length] + "…"


def _label(method: str) -> str:
  return page_style.escape(METHOD_LABELS.get(method, method))
