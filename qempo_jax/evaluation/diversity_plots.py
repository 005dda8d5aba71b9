"""The report's plot of diversity: one panel a metric, one line a policy, filled above the floor, hollow over all."""

from collections.abc import Mapping
import functools

from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import plots
from qempo_jax.evaluation.rows import METHOD_LABELS

_SHOWN = ("distinct_2", "self_bleu", "compressed_share", "semantic_distance", "vendi", "syntactic_distance")


def draw(results: Mapping, split: str) -> bytes:
  """PNG bytes, with intervals on both values and every line labelled at its left."""
  of_split = {name: entry["splits"][split] for name, entry in results["methods"].items() if split in entry["splits"]}
  names = [name for name in _SHOWN if name in next(iter(of_split.values()))["diversity"]["all_outputs"]]
  colour = functools.partial(plots.colour, methods=of_split)
  canvas, axes = plots.panels(len(names), 0.75 + 0.28 * len(of_split))
  canvas.figure.get_layout_engine().set(hspace=0.1)
  for axis, name in zip(axes, names, strict=True):
    for row, (method, figures) in enumerate(of_split.items()):
      for part, shift, face in (("above_floor", -0.14, colour(method)), ("all_outputs", 0.14, "white")):
        value = figures["diversity"][part][name]
        axis.errorbar(value["mean"], row + shift, xerr=plots.whiskers(value), color=colour(method), marker="o",
                      markersize=5.5, markerfacecolor=face, linewidth=1.2)  # fmt: skip
    label, more = diversity_metrics.LABELS[name]
    axis.set_title(f"{label}: {'more' if more else 'less'} is more diverse", loc="left")
    axis.set_yticks(range(len(of_split)), [METHOD_LABELS.get(method, method) for method in of_split])
    for tick, method in zip(axis.get_yticklabels(), of_split, strict=True):
      tick.set_color(colour(method))
      tick.set_fontweight("bold")
    axis.set_ylim(len(of_split) - 0.5, -0.5)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=5)
  return plots.png(canvas)
