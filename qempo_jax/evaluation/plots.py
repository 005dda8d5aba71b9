"""The report's plots, as PNG bytes: colour-blind-safe colours (Okabe & Ito), labels at lines and points."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import io
import warnings

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS
from qempo_jax.evaluation.rows import in_order

COLOURS = {"base": "#595959", "grpo": "#D55E00", "qempo": "#0072B2", "qempo_kl": "#00795A", "qempo_c": "#6A51A3"}
_OTHER_COLOURS = ("#A8457A", "#2B7FB8", "#7A6A00", "#8C3B00", "#333333")
_MARKERS = {"base": "s", "grpo": "^", "qempo": "D", "qempo_kl": "o", "qempo_c": "P"}
_WIDTH = 5.2  # Inches: about the width of a phone's screen at the plots' font size.
_BARS = 8


def training_plots(metrics: Mapping[str, Sequence[Mapping]], floor: float | None) -> dict[str, bytes]:
  """Plots over training steps by file name; a figure that no method logged has no plot.

  A constraint's slack is the distance to its violation: negative if violated.

  Args:
    metrics: logged steps of every method, each with `step` and some of the other keys.
    floor: floor to draw if the steps do not log one.

  Returns:
    PNG bytes by name.
  """
  series_keys = {
    "reward": [("reward", "Reward")],
    "multipliers": [("dual/quality/multiplier", "Quality multiplier"), ("dual/kl/multiplier", "KL multiplier")],
    "slack": [("slack/quality", "Reward above the floor"), ("slack/kl", "KL below the budget (nats)")],
    "training_entropy": [("entropy", "Sequence entropy (nats)")],
  }
  metrics = {method: [row | _slack(row) for row in rows] for method, rows in metrics.items()}
  plots = {}
  for name, keys in series_keys.items():
    keys = [(key, label) for key, label in keys if any(_series(rows, key)[0].size for rows in metrics.values())]
    if keys:
      plots[name] = _over_steps(metrics, keys, floor)
  return plots


def quality_plot(results: Mapping, figure: str, label: str) -> bytes:
  """Reward against `figure` for every policy, one panel a split, with intervals on both axes and the floor."""
  splits = list(results["comparisons"])
  canvas, axes = panels(len(splits), 2.7)
  for axis, split in zip(axes, splits, strict=True):
    floor = results["floors"][split]
    axis.axhline(floor, color="#444444", linestyle="--", linewidth=1)
    axis.annotate("floor", (0, floor), xycoords=("axes fraction", "data"), xytext=(4, -11),
                  textcoords="offset points", fontsize=9, color="#444444")  # fmt: skip
    points = {m: entry["splits"][split] for m, entry in results["methods"].items() if split in entry["splits"]}
    points = {m: values for m, values in points.items() if values[figure]["mean"] is not None}
    for method, values in points.items():
      x, y = values[figure], values["reward"]
      axis.errorbar(x["mean"], y["mean"], xerr=whiskers(x), yerr=whiskers(y), color=colour(method, points),
                    marker=_MARKERS.get(method, "o"), markersize=6, linewidth=1.3, linestyle="none")  # fmt: skip
    axis.margins(x=0.22, y=0.18)
    _label_points(axis, {method: (values[figure], values["reward"]) for method, values in points.items()})
    axis.set_title(SPLIT_LABELS[split].capitalize() if split in SPLIT_LABELS else split, loc="left", parse_math=False)
    axis.set_ylabel("Reward")
  axes[-1].set_xlabel(label)
  return png(canvas)


def answers_plot(answers: Mapping) -> bytes:
  """Share of samples with each of the most frequent answers to one prompt, one panel a policy.

  Args:
    answers: one split's entry of the results' `answers`.

  Returns:
    PNG bytes.
  """
  methods = answers["methods"]
  bars = {method: _bars(entry) for method, entry in methods.items()}
  spans = [len(of_method) + 0.2 for of_method in bars.values()]
  canvas, axes = panels(len(methods), 0.35 + 0.21 * sum(spans) / len(spans), ratios=spans)
  highest = max(share for of_method in bars.values() for _, share, _ in of_method)
  for axis, (method, entry) in zip(axes, methods.items(), strict=True):
    for position, (name, share, named) in enumerate(bars[method]):
      axis.barh(position, share, color=colour(method, methods) if named else "#BBBBBB", height=0.75)
      axis.text(share + 0.01 * highest, position, f"{share:.0%}", va="center", fontsize=9)
      axis.text(-0.01 * highest, position, name, va="center", ha="right", fontsize=9, parse_math=False)
    different = len(entry["counts"])
    title = f"{METHOD_LABELS.get(method, method)}: {different} different answer{'' if different == 1 else 's'}"
    axis.set_title(title, loc="left", color=colour(method, methods), parse_math=False)
    axis.set_xlim(0, highest * 1.12)
    axis.set_ylim(len(bars[method]) - 0.4, -0.6)  # One bar, one unit.
    axis.set_yticks([])
    axis.set_xticks([])
    axis.spines[["bottom", "left"]].set_visible(False)
  return png(canvas)


def _bars(entry):
  """(label, share, True for a single acceptable answer) of the bars of one policy."""
  total = entry["num_samples"]
  shown, rest = entry["counts"][:_BARS], entry["counts"][_BARS:]
  bars = [(_shorten(answer), count / total, True) for answer, count in shown]
  if rest:
    bars.append((f"{len(rest)} more", sum(count for _, count in rest) / total, False))
  if entry["num_not_acceptable"] or not bars:
    bars.append(("not acceptable", entry["num_not_acceptable"] / total, False))
  return bars


def _over_steps(metrics, keys, floor):
  canvas, axes = panels(len(keys), 2.8)
  for axis, (key, label) in zip(axes, keys, strict=True):
    ends = {}
    for method in in_order(metrics, tuple(COLOURS)):
      steps, values = _series(metrics[method], key)
      if not steps.size:
        continue
      smooth = _moving_average(values, max(1, len(values) // 15))
      if len(values) >= 30:
        axis.plot(steps, values, color=colour(method, metrics), linewidth=0.8, alpha=0.3)
      axis.plot(steps, smooth, color=colour(method, metrics), linewidth=2)
      ends[method] = (steps[-1], smooth[-1])
    if key == "reward":
      _draw_floor(axis, metrics, floor)
    if key.startswith("slack/"):
      axis.axhline(0, color="#444444", linestyle="--", linewidth=1)
    axis.set_title(label, loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_ends(axis, ends, metrics)
  axes[-1].set_xlabel("Step")
  return png(canvas)


def _slack(row):
  """Slack of each constraint that a step logs."""
  keys = {f"slack/{name}": row.get(f"dual/{name}/violation") for name in ("quality", "kl")}
  return {key: -value for key, value in keys.items() if value is not None}


def _draw_floor(axis, metrics, floor):
  steps, floors = max((_series(rows, "floor") for rows in metrics.values()), key=lambda series: series[0].size)
  if steps.size:
    axis.plot(steps, floors, color="#444444", linestyle="--", linewidth=1)
    position = (steps[0], floors[0])
  elif floor is None:
    return
  else:
    axis.axhline(floor, color="#444444", linestyle="--", linewidth=1)
    position = (axis.get_xlim()[0], floor)
  axis.annotate("floor", position, xytext=(2, 3), textcoords="offset points", fontsize=9, color="#444444")


def _series(rows, key):
  """Steps and finite values of one key, both empty if it was not logged."""
  pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None and np.isfinite(row[key])]
  steps, values = zip(*pairs, strict=True) if pairs else ((), ())
  return np.array(steps, float), np.array(values, float)


def _moving_average(values, width):
  """Mean over the last `width` values, fewer at the start."""
  total = np.concatenate([[0.0], np.cumsum(values)])
  end = np.arange(1, len(values) + 1)
  start = np.maximum(end - width, 0)
  return (total[end] - total[start]) / (end - start)


def _label_ends(axis, ends, methods):
  """Labels the lines at their right ends, spread vertically within the panel's height."""
  low, high = axis.get_ylim()
  axis.set_ylim(low, high)
  axis.set_xmargin(0.01)
  gap = (high - low) * 0.1
  order = sorted(ends, key=lambda method: ends[method][1])
  heights = []
  for method in order:
    heights.append(max(ends[method][1], heights[-1] + gap if heights else -np.inf))
  ceiling = high
  for index in reversed(range(len(order))):
    heights[index] = min(heights[index], ceiling)
    ceiling = heights[index] - gap
  for method, height in zip(order, heights, strict=True):
    axis.annotate(METHOD_LABELS.get(method, method), (ends[method][0], height), xytext=(6, 0), va="center",
                  textcoords="offset points", color=colour(method, methods), fontweight="bold", fontsize=10,
                  annotation_clip=False)  # fmt: skip


def _label_points(axis, intervals):
  """Labels each point at the corner, near or far, with least overlap with points, whiskers, labels and the edge."""
  (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
  taken, points = [], {}
  for method, sides in intervals.items():
    (x, x0, x1), (y, y0, y1) = (
      [(value["mean" if value[end] is None else end] - start) / (stop - start) for end in ("mean", "low", "high")]
      for value, start, stop in zip(sides, (left, low), (right, high), strict=True)
    )
    points[method] = (x, y)
    taken += [(x - 0.02, y - 0.04, x + 0.02, y + 0.04), (x0, y - 0.01, x1, y + 0.01), (x - 0.005, y0, x + 0.005, y1)]
  for method, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
    text = METHOD_LABELS.get(method, method)
    width = 0.023 * len(text)
    boxes = {}
    for distance in (0, 1, 2, 3):
      for side in (1, -1):
        for above in (1, -1):
          x0 = x + 0.025 if side > 0 else x - 0.025 - width
          y0 = (y + 0.03 if above > 0 else y - 0.13) + 0.11 * distance * above
          boxes[x0, y0, side] = (x0, y0, x0 + width, y0 + 0.1)
    x0, y0, side = min(boxes, key=lambda corner: _crowding(boxes[corner], taken))
    taken.append(boxes[x0, y0, side])
    axis.text(x0 if side > 0 else x0 + width, y0 + 0.05, text, transform=axis.transAxes, va="center",
              ha="left" if side > 0 else "right", color=colour(method, intervals), fontweight="bold", fontsize=10,
              parse_math=False)  # fmt: skip


def _crowding(box, taken):
  """Number of overlapping boxes, plus a penalty for sticking out of the panel."""
  x0, y0, x1, y1 = box
  meets = sum(x0 < right and left < x1 and y0 < top and bottom < y1 for left, bottom, right, top in taken)
  return meets + max(0.0, -x0, x1 - 1, -y0, y1 - 1) * 20


def whiskers(interval):
  """Error-bar lengths; None if the interval has no ends."""
  if interval["low"] is None:
    return None
  return [[max(0.0, interval["mean"] - interval["low"])], [max(0.0, interval["high"] - interval["mean"])]]


def panels(num_panels, panel_height, ratios=None):
  """A canvas of a phone's width with panels, one above the other."""
  canvas = FigureCanvasAgg(Figure(figsize=(_WIDTH, panel_height * num_panels + 0.3), dpi=170, layout="constrained"))
  axes = canvas.figure.subplots(num_panels, 1, squeeze=False, height_ratios=ratios)[:, 0]
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10)
    axis.title.set_fontsize(11)
    axis.xaxis.label.set_fontsize(11)
    axis.yaxis.label.set_fontsize(11)
  return canvas, axes


def png(canvas) -> bytes:
  """The canvas as PNG, without content that differs from run to run."""
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box, for texts of other scripts
    canvas.print_png(buffer, metadata={"Software": None})
  return buffer.getvalue()


def colour(method: str, methods: Iterable[str]) -> str:
  """Colour of one of a report's methods in every plot; names of the user's own get the further colours in turn."""
  others = sorted(set(methods) - COLOURS.keys())
  return COLOURS.get(method) or _OTHER_COLOURS[others.index(method) % len(_OTHER_COLOURS)]


def _shorten(text, length=22):
  text = "".join(character if character.isprintable() else " " for character in text)
  return text if len(text) <= length else text[: length - 1] + "…"
