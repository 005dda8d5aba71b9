"""Commands that the pages print."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
_COMMAND = re.compile(
  r"(?:^|[`\s/])python -m experiments\.([\w.]*\w)((?: \\\n\s*| )[^`\n\\]*(?:\\\n[^`\n\\]*)*)?", re.MULTILINE
)


def commands(page: pathlib.Path) -> list[tuple[str, str]]:
  """(verb, arguments as written) of every `python -m experiments.VERB` or `experiments.studies.NAME`, continued lines joined, in the page's order."""
  text = page.read_text(encoding="utf-8")
  found = [(match[1], re.sub(r"\\\n\s*", "", match[2] or "").strip()) for match in _COMMAND.finditer(text)]
  # One that stands in another command's quotes ends with them.
  return [(verb, written.removesuffix('"') if written.count('"') % 2 else written) for verb, written in found]
