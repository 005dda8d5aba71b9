"""The report's table of exact figures: of the policies themselves, sampled figures beside them."""

from collections.abc import Mapping

from qempo_jax.evaluation import pages

_COLUMNS = (
  ("acceptable", "P(acceptable)", 3),
  ("effective_answers", "Effective acceptable answers", 2),
  ("distinct@64", "Distinct acceptable answers of 64", 2),
  ("entropy_accept", "Entropy: right or wrong (nats)", 2),
  ("entropy_right", "Right responses (nats)", 2),
  ("entropy_wrong", "Wrong responses, sampled (nats)", 2),
  ("unlisted", "Acceptable but not listed, sampled", 3),
)


def table(of_split: Mapping[str, Mapping]) -> pages.Table | None:
  """One row a policy; None if no policy has exact figures on the split."""
  rows = []
  for method, figures in of_split.items():
    if exact := figures.get("exact"):
      rows.append((pages.label(method), *(_cell(exact, name, digits) for name, _, digits in _COLUMNS)))
  return (["Policy", *(label for _, label, _ in _COLUMNS)], rows) if rows else None


def _cell(exact: Mapping, name: str, digits: int) -> pages.Cell:
  found = pages.cell(exact.get(name, {"mean": None}), digits)
  sampled = exact["sampled"].get(name)
  return found._replace(small=(*found.small, f"sampled {pages.number(sampled, digits)}")) if sampled else found
