"""Formulas become MathML while the site is built: browsers show it without a script and without a network."""

import html
import re

from latex2mathml.converter import convert

_SPAN = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(content: str, **_) -> str:
  r"""Replaces each \(...\) and \[...\] of arithmatex by its MathML; called by MkDocs with a page's HTML."""
  return _SPAN.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
  tex = html.unescape(found[2]).strip()
  display = "block" if tex.startswith(r"\[") else "inline"
  return convert(tex[2:-2].strip(), display=display)
