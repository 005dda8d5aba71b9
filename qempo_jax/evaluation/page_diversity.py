"""The report's tables of diversity, solutions and entropy gains on one split."""

from collections.abc import Mapping

from qempo_jax.evaluation import alarms
from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import pages

_SOLUTIONS = {
  "pass": "pass@{}: some of {} is correct",
  "majority": "majority@{}: the most frequent of {} is correct",
  "distinct": "distinct@{}: different correct ones among {}",
}
_LOST = {"total": "All outputs", "wrong_answers": "With wrong answers", "right_answers": "Among right answers"}


def tables(of_split: Mapping[str, Mapping]) -> list[pages.Table]:
  """Tables of diversity metrics, solutions and, if known, outputs lost against the reference; one column per policy."""
  lost = {method: figures["diversity_lost"] for method, figures in of_split.items() if figures.get("diversity_lost")}
  lost_rows = [(name, *(pages.cell(value[key], 2) for value in lost.values())) for key, name in _LOST.items()]
  solutions = []
  for key in next(iter(of_split.values()))["solutions"]:
    kind, k = key.split("@")
    values = (figures["solutions"].get(key, {"mean": None}) for figures in of_split.values())
    solutions.append((_SOLUTIONS[kind].format(k, k), *map(pages.cell, values)))
  found = [(["Metric", *map(pages.label, of_split)], _metrics([figures["diversity"] for figures in of_split.values()]))]
  found.append((["Solutions", *map(pages.label, of_split)], solutions))
  if lost:
    found.append((["Different outputs lost against the reference, a prompt", *map(pages.label, lost)], lost_rows))
  return found


def _metrics(of_policies: list[Mapping]) -> list[tuple[str | pages.Cell, ...]]:
  matched = of_policies[0]["matched"]
  first = f" (first {matched}; fewer count as not diverse)" if matched else ""
  if any(map(alarms.few_texts, of_policies)):
    first += f". Fewer than {alarms.FEW_TEXTS} texts rank no policies: not in bold"
  counts = (f"{diversity['acceptable_per_prompt']:.1f}" for diversity in of_policies)
  rows = [(f"Acceptable outputs a prompt{first}", *counts)]
  for name in of_policies[0]["all_outputs"]:
    text, more = diversity_metrics.LABELS.get(name, (name, True))
    rows.append((f"{text} {'↑' if more else '↓'}", *(_above_and_all(diversity, name) for diversity in of_policies)))
  return rows


def _above_and_all(diversity: Mapping, name: str) -> pages.Cell:
  above, every = (pages.cell(diversity[key][name]) for key in ("above_floor", "all_outputs"))
  return above._replace(
    small=(*above.small, f"all {every.text} {every.small[0]}"), css="" if alarms.few_texts(diversity) else "bold"
  )


def gains(of_split: Mapping[str, Mapping]) -> list[tuple[str, str, str]]:
  """Rows of (policy, other policy, gain in sequence entropy over the other)."""
  return [
    (pages.label(method), pages.label(other), f"{gain['mean']:+.2f} nats {pages.ends(gain)}")
    for method, figures in of_split.items()
    for other, gain in figures["entropy_gains"].items()
    if method != "base"
  ]


def protocols(found: Mapping, split: str) -> list[pages.Table]:
  """Figures of the whole corpus by a published protocol, at one stated sample size for all policies."""
  shown = []
  for protocol, by_split in found.items():
    rows, methods = [], ()
    for axis, methods in by_split.get(split, {}).items():
      size = next(iter(methods.values()))["sample_size"]
      name = f"{axis.capitalize()}, {size} {'n-grams' if axis == 'lexical' else 'sentences'}"
      rows.append((name, *map(pages.cell, methods.values())))
    if rows:
      shown.append(([f"All samples pooled, protocol {protocol}", *map(pages.label, methods)], rows))
  return shown
