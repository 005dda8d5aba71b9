"""A frontier as files: index.html (self-contained), frontier.png, frontier.json and frontier.tex."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qempo_jax.evaluation import frontier
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import pages
from qempo_jax.evaluation import plots
from qempo_jax.paths import json_numbers
from qempo_jax.paths import write_atomically

FIGURES = {
  "reward": "Reward", "entropy": "Sequence entropy (nats)", "effective_answers": "Effective number of good answers",
  "kl": "KL to reference (nats)", "length": "Length (tokens)", "truncation": "Truncated", "good": "Good",
  "exact/acceptable": "P(good), exact", "exact/effective_answers": "Effective number of good answers, exact",
  "exact/distinct@64": "Expected distinct good answers of 64, exact",
}  # fmt: skip
# Okabe & Ito's colours, darkened for text; every method has a marker of its own too.
_STYLES = {
  "base": ("#595959", "s"), "grpo": ("#D55E00", "^"), "grpo_bonus": ("#8C3B00", "v"), "spl": ("#7A6A00", "P"),
  "mara": ("#A8457A", "X"), "ucpo": ("#2B7FB8", "<"), "setpo": ("#6A51A3", ">"), "dpo": ("#D55E00", "^"),
  "qempo_fixed": ("#2B7FB8", "<"), "qempo_kl": ("#00795A", "o"), "qempo": ("#0B3C8C", "D"),
  "qempo_c": ("#3F007D", "*"),
}  # fmt: skip
_GREY = "#BBBBBB"
_DASHES = ("--", "-.", ":")


def style(method: str) -> tuple[str, str]:
  """The method's (colour, marker)."""
  return _STYLES.get(method, ("#000000", "o"))


def write(directory: pathlib.Path, results: Mapping) -> pathlib.Path:
  """Writes the four files, each atomically.

  Args:
    directory: created if absent.
    results: runs, curves (exact ones by name, each a list of figures), config and command.

  Returns:
    The path of index.html.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  config = results["config"]
  found = frontier.points(results["runs"])
  png = draw(found, config, results["curves"])
  write_atomically(directory / "frontier.json", json.dumps(json_numbers(results), allow_nan=False))
  write_atomically(directory / "frontier.png", png)
  write_atomically(directory / "frontier.tex", latex(found, config))
  write_atomically(directory / "index.html", render(found, results, png))
  return directory / "index.html"


def draw(found: Sequence[frontier.Point], config: Mapping, curves: Mapping) -> bytes:
  """PNG of quality against each diversity figure: 95 % intervals, dominated points grey, one legend beside the panels."""
  names = config["diversity"]
  canvas = FigureCanvasAgg(Figure(figsize=(6.4, 4.2 * len(names)), dpi=150, layout="constrained"))
  axes = canvas.figure.subplots(len(names), 1, squeeze=False)[:, 0]
  for axis, name in zip(axes, names, strict=True):
    beaten = frontier.dominated([(p.mean(config["quality"]), p.mean(name)) for p in found])
    for dashes, (curve, rows) in zip(_DASHES, curves.items(), strict=False):
      axis.plot([r[name] for r in rows], [r[config["quality"]] for r in rows], dashes, color="#333333", linewidth=1,
                label=curve)  # fmt: skip
    for point, is_beaten in zip(found, beaten, strict=True):
      x, y = (point.interval(key, num_draws=config["num_draws"]) for key in (name, config["quality"]))
      colour, marker = style(point.method)
      axis.errorbar(x.mean, y.mean, xerr=_whiskers(x), yerr=_whiskers(y), linestyle="none", marker=marker,
                    markersize=5, linewidth=0.8, color=_GREY if is_beaten else colour,
                    markeredgecolor=colour, zorder=2 if is_beaten else 3)  # fmt: skip
    axis.set_xlabel(_named(name))
    axis.set_ylabel(_named(config["quality"]))
    axis.spines[["top", "right"]].set_visible(False)
  lines, _ = axes[0].get_legend_handles_labels()
  for method in dict.fromkeys(point.method for point in found):
    colour, marker = style(method)
    lines.append(Line2D([], [], linestyle="none", marker=marker, color=colour, label=pages.label(method)))
  canvas.figure.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=9)
  axes[0].set_title(
    "Grey: another point is better in both.\nBars: 95 % over prompts and seeds.", loc="left", fontsize=9
  )
  return plots.png(canvas)


def latex(found: Sequence[frontier.Point], config: Mapping) -> str:
  """The operating points as a LaTeX tabular with booktabs rules."""
  names = [config["quality"], *config["diversity"]]
  head = " & ".join(["Method", "Operating point", *map(_named, names)])
  lines = [r"\begin{tabular}{ll" + "r" * len(names) + "}", r"\toprule", head + r" \\", r"\midrule"]
  for point in found:
    cells = [pages.label(point.method), point.label.replace("_", r"\_")]
    for name in names:
      cells.append(_with_ends(point.interval(name, num_draws=config["num_draws"])))
    lines.append(" & ".join(cells) + r" \\")
  return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def volumes(found: Sequence[frontier.Point], config: Mapping) -> dict[str, tuple]:
  """By method (number of points, the hypervolume's interval) of quality and the first figure of diversity."""
  names = (config["quality"], config["diversity"][0])
  by_method = {}
  for point in found:
    by_method.setdefault(point.method, []).append(point)
  settings = {"num_draws": config["num_draws"]}
  return {
    method: (len(of), frontier.hypervolume_interval(of, names, config["reference_point"], **settings))
    for method, of in by_method.items()
  }


def matches(found: Sequence[frontier.Point], config: Mapping) -> list[frontier.Match]:
  """Matched-quality comparisons of a config, on its first figure of diversity."""
  keys = ("quality", "baseline", "levels", "tolerance", "num_draws")
  return frontier.matched(found, diversity=config["diversity"][0], **{key: config[key] for key in keys})


def headline(found: Sequence[frontier.Point], config: Mapping) -> str:
  """First sentence: the number of quality levels at which the last method is more diverse than the baseline."""
  method, name = config["methods"][-1], _named(config["diversity"][0]).lower()
  of_method = [m for m in matches(found, config) if m.method == method and m.diversity is not None]
  ours, theirs = pages.label(method), pages.label(config["baseline"])
  if not of_method:
    return f"{ours} and {theirs} have no points of equal quality, so nothing can be compared."
  higher = sum(m.diversity.different and m.diversity.difference.mean > 0 for m in of_method)
  lower = sum(m.diversity.different and m.diversity.difference.mean < 0 for m in of_method)
  return (
    f"{ours} against {theirs} in {name}: higher at {higher} and lower at {lower} of {len(of_method)} matched levels"
    " of quality (Holm-corrected, 5 %)."
  )


def _named(figure: str) -> str:
  return FIGURES.get(figure, figure)


def render(found: Sequence[frontier.Point], results: Mapping, png: bytes) -> str:
  """The page, in the report's style."""
  config = results["config"]
  shown = (config["quality"], *config["diversity"], "kl", "length", "truncation")
  by_volume = sorted(volumes(found, config).items(), key=lambda item: -item[1][1].mean)
  match_rows = []
  for m in matches(found, config):
    if m.diversity is not None:
      difference = m.diversity.difference
      verdict = ("higher" if difference.mean > 0 else "lower") if m.diversity.different else "no difference shown"
      match_rows.append((
        pages.label(m.method), f"{m.level:.2f}", _with_ends(difference, "+.3f"),
        f"{m.diversity.adjusted_p_value:.3f}", verdict, _with_ends(m.quality, "+.3f"), m.point.label,
        m.baseline_point.label,
      ))  # fmt: skip
  return pages.render(
    "frontier.html",
    headline=headline(found, config),
    png=png,
    diversity=_named(config["diversity"][0]),
    baseline=pages.label(config["baseline"]),
    tolerance=f"{config['tolerance']:g}",
    matches=match_rows,
    reference=", ".join(f"{value:g}" for value in config["reference_point"]),
    volumes=[
      (pages.label(method), str(count), f"{volume.mean:.3f}", f"[{volume.low:.3f}, {volume.high:.3f}]")
      for method, (count, volume) in by_volume
    ],
    columns=["Point", *map(_named, shown)],
    points=[
      (
        f"{pages.label(point.method)}: {point.label}",
        *(_with_ends(point.interval(name, num_draws=config["num_draws"])) for name in shown),
      )
      for point in found
    ],
    command=results["command"],
    made_now=json.dumps(results["made_now"]),
    seeds=config["seeds"],
    config_text=json.dumps(config, indent=2),
  )


def _with_ends(interval: intervals.Interval, spec: str = ".3f") -> str:
  """The mean with both ends, each in the format `spec`."""
  return f"{interval.mean:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]"


def _whiskers(interval):
  return [[max(0.0, interval.mean - interval.low)], [max(0.0, interval.high - interval.mean)]]
