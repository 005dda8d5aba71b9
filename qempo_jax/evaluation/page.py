"""The report as one HTML page that needs nothing else. All text from outside is escaped; scripts are not allowed."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import html
import json
from string import Template

from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS

_LONGEST_COMPLETION = 240
_COMPLETIONS = 8

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1d1d1f; --soft: #55585f; --line: #d8dade; --blue: #0072b2; --red: #a33c00; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; }
.verdict { border: 1px solid var(--line); border-left: 8px solid var(--soft); padding: .75rem 1rem; }
.verdict.met { border-left-color: var(--blue); }
.verdict.not-met { border-left-color: var(--red); }
.verdict strong { font-size: 1.3rem; }
.badge { font-weight: 700; white-space: nowrap; }
.badge.met { color: var(--blue); }
.badge.not-met { color: var(--red); }
ul.warnings { padding-left: 1.2rem; margin: .25rem 0; }
ul.warnings li { margin: .4rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .6rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th, td.head { overflow-wrap: normal; }
td.head { white-space: nowrap; }
td.long { white-space: normal; }
td small { display: block; color: var(--soft); white-space: nowrap; }
.plots { columns: 27rem; column-gap: 2rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figure img { width: 100%; max-width: 40rem; height: auto; display: block; }
figcaption { font-size: .9rem; color: var(--soft); margin-bottom: .3rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 1rem; }
ol.samples { list-style: none; margin: 0; padding: 0; font-size: .9rem; }
ol.samples li { border-top: 1px solid var(--line); padding: .25rem 0; white-space: pre-wrap;
  display: grid; grid-template-columns: 2rem 1fr; }
.mark { color: var(--soft); }
pre { white-space: pre-wrap; font-size: .85rem; background: #f5f6f7; padding: .75rem; margin: .4rem 0; }
@media (max-width: 640px) {
  table, tbody, tr, td { display: block; width: 100%; }
  thead { display: none; }
  tr { border-bottom: 2px solid var(--line); padding: .4rem 0; }
  td { border: 0; padding: .1rem 0; display: grid; grid-template-columns: 10.75rem 1fr; }
  td::before { content: attr(data-label); color: var(--soft); font-size: .9rem; }
  td small { display: inline; margin-left: .5rem; }
  td.head { display: block; font-weight: 700; }
  td.head::before { content: none; }
}
</style>
</head>
<body>
$body
</body>
</html>
""")


def render(results: Mapping, plots: Mapping[str, tuple[bytes, str]], rows: Sequence[Mapping]) -> str:
  """The whole page.

  Args:
    results: what `summarise` returned.
    plots: PNG bytes and caption by name, in the order to show.
    rows: the evaluation rows, for sample completions.

  Returns:
    HTML.
  """
  sections = [
    "<h1>QEMPO report</h1>",
    _verdict(results),
    _warnings(results),
    "<h2>Plots</h2>",
    '<div class="plots">' + "".join(_figure(name, *plot) for name, plot in plots.items()) + "</div>",
    "<h2>The policies</h2>",
    f'<p class="soft">Means over prompts with {results["level"]:.0%} intervals from a bootstrap over prompts.</p>',
    *(_table(results, split) for split in results["comparisons"]),
    "<h2>Certificates</h2>",
    _certificates(results),
    "<h2>Sample completions</h2>",
    '<p class="soft">The first samples of one prompt a split; the number is the reward.</p>',
    *(_completions(rows, split, answers) for split, answers in results["answers"].items() if answers),
    "<h2>How this was made</h2>",
    _run(results),
  ]
  return document("QEMPO report", "\n".join(sections))


def document(title: str, body: str) -> str:
  """A page in the report's style; `body` is HTML, its outside text escaped already."""
  return _PAGE.substitute(title=escape(title), body=body)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table that stacks into labelled lines on a phone; the first column heads each row. All text is escaped."""
  cells = lambda row: "".join(
    f'<td data-label="{escape(name)}"><span>{escape(text)}</span></td>' for name, text in zip(head[1:], row[1:], strict=True)
  )
  body = "".join(f'<tr><td class="head long">{escape(row[0])}</td>{cells(row)}</tr>' for row in rows)
  return f"<table><thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead><tbody>{body}</tbody></table>"


def headline(results: Mapping) -> tuple[str, str, list[str]]:
  """Verdict, headline and sentences on the main method on the main split.

  The main method is the last one trained (QEMPO-KL where there is one), the main split held-out wordings.
  """
  split = "heldout_wordings" if "heldout_wordings" in results["comparisons"] else next(iter(results["comparisons"]))
  method = [name for name, entry in results["methods"].items() if split in entry["splits"]][-1]
  name, where = METHOD_LABELS.get(method, method), SPLIT_LABELS.get(split, split)
  figures = results["methods"][method]["splits"][split]
  certificate = figures["certificates"][0]
  floor = f"the reward floor {certificate['bound']:.3g} on {where}."
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
      f"Its effective number of acceptable answers is {_number(ratio)} times {baseline}'s {_range(ratio)}; "
      f"its reward differs by {difference['mean']:+.3f} {_range(difference, 3)}."
    )
    if not comparison["matched"]:
      sentences.append("The rewards are not matched, so this is no comparison at equal quality.")
  return certificate["verdict"], said, sentences


def _verdict(results):
  verdict, said, sentences = headline(results)
  return (
    f'<div class="verdict {_css(verdict)}"><strong>{_text(verdict)}</strong><p>{_text(said)}</p>'
    + "".join(f'<p class="soft">{_text(sentence)}</p>' for sentence in sentences)
    + "</div>"
  )


def _warnings(results):
  if not results["warnings"]:
    return '<h2>Warnings</h2><p class="soft">None.</p>'
  by_kind = {}
  for item in results["warnings"]:
    by_kind.setdefault((item["kind"], item["advice"]), []).append(item["message"])
  items = (
    f"<li>{'<br>'.join(map(_text, messages))}<br><i>{_text(advice)}</i></li>"
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
)


def _table(results, split):
  head = "".join(f"<th>{label}</th>" for label in ("Policy", *(label for _, label, _ in _COLUMNS), "Floor"))
  body = []
  for method, entry in results["methods"].items():
    if split not in entry["splits"]:
      continue
    figures = entry["splits"][split]
    cells = [f'<td class="head">{_text(METHOD_LABELS.get(method, method))}</td>']
    for key, label, digits in _COLUMNS:
      value = figures[key]
      cells.append(
        f'<td data-label="{label}"><span>{_number(value, digits)}<small>{_range(value, digits)}</small></span></td>'
      )
    verdict = figures["certificates"][0]["verdict"]
    cells.append(f'<td data-label="Floor"><span class="badge {_css(verdict)}">{verdict}</span></td>')
    body.append("<tr>" + "".join(cells) + "</tr>")
  title = SPLIT_LABELS.get(split, split)
  return (
    f"<h3>{_text(title[:1].upper() + title[1:])}</h3>"
    f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
  )


def _figure(name, png, caption):
  data = base64.b64encode(png).decode()
  return (
    f"<figure><figcaption>{_text(caption)}</figcaption>"
    f'<img id="{_text(name)}" alt="{_text(caption)}" src="data:image/png;base64,{data}"></figure>'
  )


def _certificates(results):
  items = []
  for method, entry in results["methods"].items():
    for split, figures in entry["splits"].items():
      where = f"{METHOD_LABELS.get(method, method)}, {SPLIT_LABELS.get(split, split)}"
      items += [f"<li><b>{_text(where)}:</b> {_text(c['words'])}</li>" for c in figures["certificates"]]
  return '<ul class="warnings">' + "".join(items) + "</ul>"


def _completions(rows, split, answers):
  columns = []
  for method in answers["methods"]:
    found = [row for row in rows if (row["method"], row["split"], row["prompt"]) == (method, split, answers["prompt"])]
    found.sort(key=lambda row: (row["seed"], row["sample"]))
    items = "".join(
      f'<li><span class="mark">{row["reward"]:.2g}</span><bdi>{_text(_shorten(row["completion"]))}</bdi></li>'
      for row in found[:_COMPLETIONS]
    )
    columns.append(f'<div><b>{_text(METHOD_LABELS.get(method, method))}</b><ol class="samples">{items}</ol></div>')
  title = SPLIT_LABELS.get(split, split)
  return (
    f"<h3>{_text(title[:1].upper() + title[1:])}: “<bdi>{_text(answers['prompt'])}</bdi>”</h3>"
    f'<div class="columns">{"".join(columns)}</div>'
  )


def _run(results):
  run = dict(results["run"])
  parts = []
  for name in ("command", "seed"):
    if name in run:
      parts.append(f"<p>{name.capitalize()}:</p><pre>{_text(str(run.pop(name)))}</pre>")
  config = run.pop("config", None)
  if run:
    parts.append(f"<pre>{_text(json.dumps(run, indent=2, default=str))}</pre>")
  if config is not None:
    shown = config if isinstance(config, str) else json.dumps(config, indent=2, default=str)
    parts.append(f"<details><summary>Config</summary><pre>{_text(shown)}</pre></details>")
  draws = results["bootstrap"]
  parts.append(f'<p class="soft">Bootstrap: {draws["num_draws"]} draws over prompts, seed {draws["seed"]}.</p>')
  return "".join(parts)


def _number(value, digits=2):
  return "–" if value["mean"] is None else f"{value['mean']:.{digits}f}"


def _range(value, digits=2):
  low, high = (("–" if value[end] is None else f"{value[end]:.{digits}f}") for end in ("low", "high"))
  return f"[{low}, {high}]"


def _css(verdict):
  return verdict.lower().replace(" ", "-")


def _shorten(text):
  return text if len(text) <= _LONGEST_COMPLETION else text[:_LONGEST_COMPLETION] + "…"


def _text(text):
  """Escaped for HTML, with control characters and lone surrogates made visible."""
  shown = "".join(char if char in "\n\t" or ord(char) >= 32 else "\ufffd" for char in str(text))
  return html.escape(shown.encode("utf-8", "replace").decode("utf-8"), quote=True)


# What other pages in the same style are made of.
escape, figure = _text, _figure
