"""The report as one self-contained HTML page. All external text is escaped; scripts are not allowed."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import json

from qempo_jax.evaluation import page_completions
from qempo_jax.evaluation import page_diversity
from qempo_jax.evaluation import page_style
from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS


def render(results: Mapping, plots: Mapping[str, tuple[bytes, str]], rows: Sequence[Mapping]) -> str:
  """Renders the whole page.

  Args:
    results: from `summarise`.
    plots: PNG bytes and caption by name, in the order of display.
    rows: the evaluation rows, for sample completions.

  Returns:
    HTML.
  """
  sections = [
    "<h1>QEMPO report</h1>",
    _verdict(results),
    _warnings(results),
    "<h2>Plots</h2>",
    '<div class="plots">' + "".join(figure(name, *plot) for name, plot in plots.items()) + "</div>",
    "<h2>The policies</h2>",
    f'<p class="soft">Means over prompts with {results["level"]:.0%} intervals {_units(results)}.</p>',
    *(_table(results, split) for split in results["comparisons"]),
    "<h2>Diversity</h2>",
    page_diversity.section(results, main_split(results)),
    "<h2>Certificates</h2>",
    _certificates(results),
    *_judging(results.get("judging")),
    "<h2>Completions side by side</h2>",
    page_completions.INTRODUCTION,
    *(page_completions.section(rows, split, answers) for split, answers in results["answers"].items() if answers),
    "<h2>How this was made</h2>",
    _run(results),
  ]
  return page_style.document("QEMPO report", "\n".join(sections))


def headline(results: Mapping) -> tuple[str, str, list[str]]:
  """Verdict, headline and sentences on the main method and split.

  The main method is the last one trained (QEMPO-KL if present); the main split is held-out wordings.
  """
  split = main_split(results)
  method = [name for name, entry in results["methods"].items() if split in entry["splits"]][-1]
  name, where = METHOD_LABELS.get(method, method), SPLIT_LABELS.get(split, split)
  figures = results["methods"][method]["splits"][split]
  certificate = figures["certificates"][0]
  floor = f"{_floor_in_words(certificate)} on {where}."
  said = {
    "MET": f"{name} keeps {floor}",
    "NOT MET": f"{name} is below {floor}",
    "UNDECIDED": f"The samples cannot tell whether {name} keeps {floor}",
  }[certificate["verdict"]]
  sentences = [certificate["words"]]
  comparison = results["comparisons"][split].get(method)
  if comparison and comparison["effective_answers_ratio"]["mean"] is not None:
    baseline = METHOD_LABELS.get(comparison["baseline"], comparison["baseline"])
    ratio, difference = comparison["effective_answers_ratio"], comparison["reward_difference"]
    sentences.append(
      f"Its effective number of acceptable answers is {page_style.number(ratio)} times {baseline}'s {page_style.ends(ratio)}; "
      f"its reward differs by {difference['mean']:+.3f} {page_style.ends(difference, 3)}."
    )
    p_value = comparison.get("p_values_holm", {}).get("effective_answers")
    if p_value is not None:
      sentences[-1] = f"{sentences[-1][:-1]} (answers: p = {p_value:.3f} by Holm)."
    if not comparison["matched"]:
      sentences.append("The rewards are not matched, so this is no comparison at equal quality.")
  for other, gain in figures["entropy_gains"].items():
    sentences.append(
      f"Its sequence entropy differs from {METHOD_LABELS.get(other, other)}'s by {gain['mean']:+.2f} nats"
      f" {page_style.ends(gain)}."
    )
  return certificate["verdict"], said, sentences


def main_split(results: Mapping) -> str:
  """Split of the headline and the diversity plot."""
  return "heldout_wordings" if "heldout_wordings" in results["comparisons"] else next(iter(results["comparisons"]))


def _floor_in_words(certificate):
  if certificate["constraint"] == "reward":
    return f"the reward floor {certificate['bound']:.3g}"
  return (
    f"the reference's reward less {-certificate['bound']:.3g}" if certificate["bound"] else "the reference's reward"
  )


def _verdict(results):
  verdict, said, sentences = headline(results)
  return (
    f'<div class="verdict {_css(verdict)}"><strong>{page_style.escape(verdict)}</strong><p>{page_style.escape(said)}</p>'
    + "".join(f'<p class="soft">{page_style.escape(sentence)}</p>' for sentence in sentences)
    + "</div>"
  )


def _warnings(results):
  if not results["warnings"]:
    return '<h2>Warnings</h2><p class="soft">None.</p>'
  by_kind = {}
  for item in results["warnings"]:
    by_kind.setdefault((item["kind"], item["advice"]), []).append(item["message"])
  items = (
    f"<li>{'<br>'.join(map(page_style.escape, messages))}<br><i>{page_style.escape(advice)}</i></li>"
    for (_, advice), messages in by_kind.items()
  )
  return '<h2>Warnings</h2><ul class="warnings">' + "".join(items) + "</ul>"


_COLUMNS = (
  ("reward", "Reward", 3),
  ("effective_answers", "Effective answers", 2),
  ("coverage", "Coverage of the set", 3),
  ("entropy", "Entropy (nats)", 2),
  ("entropy_per_token", "Entropy per token", 2),
  ("kl", "KL to reference (nats)", 2),
  ("length", "Length (tokens)", 1),
  ("truncation", "Truncated", 3),
  ("noncanonical", "Re-encodes to other tokens", 3),
  ("repetition", "Repeated 4-grams", 3),
)


def _table(results, split):
  head = "".join(f"<th>{label}</th>" for label in ("Policy", *(label for _, label, _ in _COLUMNS), "Floor"))
  body = []
  for method, entry in results["methods"].items():
    if split not in entry["splits"]:
      continue
    figures = entry["splits"][split]
    cells = [f'<td class="head">{page_style.escape(METHOD_LABELS.get(method, method))}</td>']
    for key, label, digits in _COLUMNS:
      value = figures[key]
      cells.append(
        f'<td data-label="{label}"><span>{page_style.number(value, digits)}<small>{page_style.ends(value, digits)}</small></span></td>'
      )
    verdict = figures["certificates"][0]["verdict"]
    cells.append(f'<td data-label="Floor"><span class="badge {_css(verdict)}">{verdict}</span></td>')
    body.append("<tr>" + "".join(cells) + "</tr>")
  title = SPLIT_LABELS.get(split, split)
  return (
    f"<h3>{page_style.escape(title[:1].upper() + title[1:])}</h3>"
    f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
  )


def figure(name: str, png: bytes, caption: str) -> str:
  """A plot with its caption."""
  data = base64.b64encode(png).decode()
  return (
    f"<figure><figcaption>{page_style.escape(caption)}</figcaption>"
    f'<img id="{page_style.escape(name)}" alt="{page_style.escape(caption)}" src="data:image/png;base64,{data}"></figure>'
  )


def _certificates(results):
  items = []
  for method, entry in results["methods"].items():
    for split, figures in entry["splits"].items():
      where = f"{METHOD_LABELS.get(method, method)}, {SPLIT_LABELS.get(split, split)}"
      items += [
        f"<li><b>{page_style.escape(where)}:</b> {page_style.escape(c['words'])}</li>" for c in figures["certificates"]
      ]
  return '<ul class="warnings">' + "".join(items) + "</ul>"


def _judging(found):
  if found:
    rate, controlled = found["rate"], found["length_controlled"]
    yield (
      f"<h2>Judged in pairs</h2><p>Win rate {page_style.number(rate)} {page_style.ends(rate)} over {found['num_pairs']} pairs of"
      f" {found['num_prompts']} prompts, asked in both orders; at equal lengths {page_style.number(controlled)}"
      f" {page_style.ends(controlled)}. In {found['order_decided']:.0%} of pairs the order decided.</p>"
    )


def _run(results):
  run = dict(results["run"])
  parts = []
  for name in ("command", "seed"):
    if name in run:
      parts.append(f"<p>{name.capitalize()}:</p><pre>{page_style.escape(str(run.pop(name)))}</pre>")
  config = run.pop("config", None)
  if run:
    parts.append(f"<pre>{page_style.escape(json.dumps(run, indent=2, default=str))}</pre>")
  if config is not None:
    shown = config if isinstance(config, str) else json.dumps(config, indent=2, default=str)
    parts.append(f"<details><summary>Config</summary><pre>{page_style.escape(shown)}</pre></details>")
  draws = results["bootstrap"]
  parts.append(
    f'<p class="soft">Bootstrap: {draws["num_draws"]} draws, seed {draws["seed"]}; intervals {_units(results)}.</p>'
  )
  return "".join(parts)


def _css(verdict):
  return verdict.lower().replace(" ", "-")


def _units(results: Mapping) -> str:
  """Sampling units of each split's intervals, in words."""
  units = results["bootstrap"]["clusters"]
  parts = [f"{found['families']} on {split} (for {found['generalises_to']})" for split, found in units.items()]
  return page_style.escape("over " + "; ".join(parts)) + "; another training seed is another policy"
