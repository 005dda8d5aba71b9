"""Shared style of the studies' figures: a phone's width, large type, colour-blind safe colours (Okabe & Ito)."""

import pathlib

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, GREY = (
  "#0072B2", "#D55E00", "#00795A", "#CC79A7", "#56B4E9", "#595959",
)  # fmt: skip
_WIDTH = 5.2  # Inches: about the width of a phone's screen at this size of type.


def panels(count: int, *, height: float = 3.1) -> tuple[Figure, list[Axes]]:
  """Returns a figure and its panels, one above the other.

  Args:
    count: number of panels.
    height: height of each panel, inches.
  """
  figure = Figure(figsize=(_WIDTH, count * height), layout="constrained")
  FigureCanvasAgg(figure)
  figure.get_layout_engine().set(hspace=0.06)
  axes = list(figure.subplots(count, 1, squeeze=False)[:, 0])
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10)
    axis.xaxis.label.set_size(11)
    axis.yaxis.label.set_size(11)
    axis.title.set_size(12)
  return figure, axes


def label(axis: Axes, text: str, at: tuple[float, float], colour: str, *, to=(6, 0), **style) -> None:
  """Writes the name of a line or point next to it.

  Args:
    axis: the panel.
    text: the label.
    at: position in the panel's data coordinates.
    colour: colour of the text.
    to: offset from the position, points.
    **style: passed to `Axes.annotate`.
  """
  style = {"fontsize": 10.5, "va": "center"} | style
  axis.annotate(text, at, xytext=to, textcoords="offset points", color=colour, **style)


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes the figure as PNG, without metadata that differs between runs."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150, metadata={"Software": None})
