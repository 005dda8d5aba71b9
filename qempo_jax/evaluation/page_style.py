"""Style of every page: one self-contained HTML document without scripts."""

import html
from string import Template

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
  display: grid; grid-template-columns: 3.2rem 1fr; }
.mark { color: var(--soft); }
.key { display: inline-block; padding: 0 .35rem; margin-right: .25rem; border: 1px solid var(--line); border-radius: .25rem;
  font-size: .9rem; }
ins { background: #cfe6f7; text-decoration: none; border-bottom: 2px solid var(--blue); }
del { color: var(--red); text-decoration: line-through; }
details > summary { cursor: pointer; padding: .5rem 0; }
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


def document(title: str, body: str) -> str:
  """A page in the report's style; `body` is HTML with external text already escaped."""
  return _PAGE.substitute(title=escape(title), body=body)


def table(head, rows) -> str:
  """A table that stacks into labelled lines on a phone; the first column heads each row. All text is escaped."""
  cells = [[escape(text) for text in row[1:]] for row in rows]
  return html_table(head, [row[0] for row in rows], cells)


def html_table(head, names, cells) -> str:
  """`table` with cells that are HTML: `names` heads the rows, `cells` has the other columns."""

  def line(name, row):
    columns = zip(head[1:], row, strict=True)
    return f'<tr><td class="head long">{escape(name)}</td>' + "".join(
      f'<td data-label="{escape(label)}"><span>{cell}</span></td>' for label, cell in columns
    )

  body = "".join(f"{line(name, row)}</tr>" for name, row in zip(names, cells, strict=True))
  titles = "".join(f"<th>{escape(name)}</th>" for name in head)
  return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def number(value, digits: int = 2) -> str:
  """Mean of an interval, or a dash without one."""
  return "–" if value["mean"] is None else f"{round(value['mean'], digits) + 0.0:.{digits}f}"  # No -0.00.


def ends(value, digits: int = 2) -> str:
  """Both ends of an interval; empty without a mean."""
  if value["mean"] is None:
    return ""
  low, high = (("–" if value[end] is None else f"{value[end]:.{digits}f}") for end in ("low", "high"))
  return f"[{low}, {high}]"


def escape(text) -> str:
  """Text escaped for HTML, with control characters and lone surrogates made visible."""
  shown = "".join(char if char in "\n\t" or ord(char) >= 32 else "\ufffd" for char in str(text))
  return html.escape(shown.encode("utf-8", "replace").decode("utf-8"), quote=True)
