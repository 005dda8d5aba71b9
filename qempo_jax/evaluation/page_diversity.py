"""The report's tables of diversity, solutions and entropy gains, one set per split."""

from collections.abc import Iterable
from collections.abc import Mapping

from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import page_style
from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS

_SOLUTIONS = {
  "pass": "pass@{}: some of {} is correct",
  "majority": "majority@{}: the most frequent of {} is correct",
  "distinct": "distinct@{}: different correct ones among {}",
}


def section(results: Mapping, main: str) -> str:
  """All tables as HTML, with the main split unfolded; missing axes are named first."""
  parts = [
    '<p class="soft">Between the samples of one prompt, the mean over prompts with its interval. In bold over the'
    " acceptable outputs alone, below it over all outputs: diverse garbage is not diversity. ↑ more is more diverse, ↓ less"
    " is. All move with the length and the number of outputs, so compare the policies in a row, not its two lines.</p>"
  ]
  for axis, why in results["run"].get("left_out", {}).items():
    parts.append(f"<p>{page_style.escape(axis.capitalize())}: {page_style.escape(why)}</p>")
  for split in results["comparisons"]:
    of_split = {name: entry["splits"][split] for name, entry in results["methods"].items() if split in entry["splits"]}
    title = SPLIT_LABELS.get(split, split)
    tables = [
      _metrics(of_split),
      _solutions(of_split),
      *_lost(of_split),
      *_gains(of_split),
      *_protocols(results.get("protocols", {}), split),
    ]
    shown = " open" if split == main else ""
    heading = f"<summary><b>{page_style.escape(title[:1].upper() + title[1:])}</b></summary>"
    parts.append(f"<details{shown}>{heading}{''.join(tables)}</details>")
  return "".join(parts)


def _metrics(of_split: Mapping) -> str:
  first = next(iter(of_split.values()))["diversity"]
  most = f"Acceptable outputs a prompt (first {first['matched']}; fewer count as not diverse)"
  names = [most if first["matched"] else "Acceptable outputs a prompt"]
  cells = [[f"{figures['diversity']['acceptable_per_prompt']:.1f}" for figures in of_split.values()]]
  for name in first["all_outputs"]:
    label, more = diversity_metrics.LABELS.get(name, (name, True))
    names.append(f"{label} {'↑' if more else '↓'}")
    cells.append([_both(figures["diversity"], name) for figures in of_split.values()])
  return page_style.html_table(["Metric", *map(_label, of_split)], names, cells)


def _both(diversity: Mapping, name: str) -> str:
  above, every = diversity["above_floor"][name], diversity["all_outputs"][name]
  return (
    f"<b>{page_style.number(above, 3)}</b> <small>{page_style.ends(above, 3)}</small>"
    f"<small>all {page_style.number(every, 3)} {page_style.ends(every, 3)}</small>"
  )


def _solutions(of_split: Mapping) -> str:
  names, cells = [], []
  for key in next(iter(of_split.values()))["solutions"]:
    kind, k = key.split("@")
    names.append(_SOLUTIONS[kind].format(k, k))
    values = [figures["solutions"].get(key, {"mean": None}) for figures in of_split.values()]
    cells.append([f"{page_style.number(v, 3)} <small>{page_style.ends(v, 3)}</small>" for v in values])
  return page_style.html_table(["Solutions", *map(_label, of_split)], names, cells)


def _gains(of_split: Mapping) -> Iterable[str]:
  items = [
    f"<li><b>{page_style.escape(_label(method))}</b> over {page_style.escape(_label(other))}:"
    f" {gain['mean']:+.2f} nats {page_style.ends(gain)}</li>"
    for method, figures in of_split.items()
    for other, gain in figures["entropy_gains"].items()
    if method != "base"
  ]
  if items:
    yield '<p class="soft">Gain in sequence entropy, on the same prompts; lengths are in the table above.</p>'
    yield '<ul class="warnings">' + "".join(items) + "</ul>"


def _lost(of_split: Mapping) -> Iterable[str]:
  """Fewer different outputs than the reference's, by whether the reference's were acceptable."""
  lost = {method: figures["diversity_lost"] for method, figures in of_split.items() if figures.get("diversity_lost")}
  if not lost:
    return
  names = {"total": "all outputs", "wrong_answers": "with wrong answers", "right_answers": "among right answers"}
  cells = [
    [f"{page_style.number(v[key], 2)} <small>{page_style.ends(v[key], 2)}</small>" for v in lost.values()]
    for key in names
  ]
  header = ["Different outputs lost against the reference, a prompt", *map(_label, lost)]
  yield page_style.html_table(header, [name.capitalize() for name in names.values()], cells)


def _protocols(protocols: Mapping, split: str) -> Iterable[str]:
  """Corpus figures by a published protocol, at one stated sample size for all policies."""
  for protocol, by_split in protocols.items():
    axes = by_split.get(split, {})
    if not axes:
      continue
    names, cells = [], []
    for axis, by_method in axes.items():
      size = next(iter(by_method.values()))["sample_size"]
      names.append(f"{axis.capitalize()}, {size} {'n-grams' if axis == 'lexical' else 'sentences'}")
      cells.append([f"{page_style.number(v, 3)} <small>{page_style.ends(v, 3)}</small>" for v in by_method.values()])
    methods = [_label(method) for method in next(iter(axes.values()))]
    yield page_style.html_table([f"Corpus, by {protocol}", *methods], names, cells)


def _label(method: str) -> str:
  return METHOD_LABELS.get(method, method)
