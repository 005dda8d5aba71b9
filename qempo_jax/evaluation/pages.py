"""Templates of the HTML pages, and text formatting of figures.

All values are escaped. A page needs no other file and runs no script.
"""

import base64
from collections.abc import Mapping
import re
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")


class Cell(NamedTuple):
  """A table cell.

  Attributes:
    text: the first line.
    small: the smaller lines below it; empty ones are left out.
    css: CSS classes of the text.
  """

  text: str
  small: tuple[str, ...] = ()
  css: str = ""


Table = tuple[list[str], list[tuple[str | Cell, ...]]]  # column titles, and rows that start with their name


def render(template: str, **context) -> str:
  """Returns the HTML of a file in `templates`; a value that the template uses and `context` lacks raises."""
  return _TEMPLATES.get_template(template).render(context)


def label(method: str) -> str:
  """The method's display name."""
  return METHOD_LABELS.get(method, method)


def title(split: str) -> str:
  """The split's name as a title; names of files stay as they are."""
  return SPLIT_LABELS[split].capitalize() if split in SPLIT_LABELS else split


def number(value: Mapping, digits: int = 2) -> str:
  """The mean of an interval, or a dash without one."""
  return "–" if value["mean"] is None else f"{round(value['mean'], digits) + 0.0:.{digits}f}"  # no -0.00


def ends(value: Mapping, digits: int = 2) -> str:
  """Both ends of an interval; empty without a mean."""
  if value["mean"] is None:
    return ""
  low, high = (("–" if value[end] is None else f"{value[end]:.{digits}f}") for end in ("low", "high"))
  return f"[{low}, {high}]"


def cell(value: Mapping, digits: int = 3) -> Cell:
  """The mean with the interval below it."""
  return Cell(number(value, digits), (ends(value, digits),))


def visible(value) -> str:
  """The value as text, with control characters and lone surrogates replaced; markup is kept."""
  if isinstance(value, Markup):
    return value
  return _CONTROL.sub("\ufffd", str(value)).encode("utf-8", "replace").decode("utf-8")


_TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader("qempo_jax.evaluation"),
  autoescape=True,
  finalize=visible,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
_TEMPLATES.filters["data_uri"] = lambda png: Markup("data:image/png;base64," + base64.b64encode(png).decode())
