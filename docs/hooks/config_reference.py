"""The configuration reference, made from configs/base.py while the site is built; `python docs/hooks/config_reference.py` prints it."""

import io
import pathlib
import re
import sys
import tokenize

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # The site is built without installing the experiments.
from configs import base  # noqa: E402

MARKER = "<!-- configuration -->"
_ASSIGNMENT = re.compile(r"  config\.([\w.]+) = ")
_HEAD = ["", "| key | default | meaning |", "|---|---|---|"]
_SHARED = "constraints.NAME."  # Keys of every constraint, which `base.constraint` declares.


def on_page_markdown(markdown: str, **_) -> str:
  """Puts the tables in place of the marker; called by MkDocs with a page's Markdown."""
  return markdown.replace(MARKER, tables()) if MARKER in markdown else markdown


def meanings() -> dict[str, str]:
  """Meaning of each key and group: the comment lines above its line, and the comment behind it."""
  source = pathlib.Path(base.__file__).read_text(encoding="utf-8")
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  behind = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
  found, above, prefix = {}, [], _SHARED
  for number, line in enumerate(source.splitlines(), start=1):
    if line.startswith("def get_config"):
      prefix = ""
    if line.strip().startswith("#"):
      above.append(behind[number])
      continue
    if match := _ASSIGNMENT.match(line):
      found[prefix + match[1]] = " ".join([*above, *([behind[number]] if number in behind else [])])
    above = []
  return found


def tables() -> str:
  """One table of the keys outside groups, and one a group."""
  config, said = base.get_config(), meanings()
  groups = [key for key in said if isinstance(config.get(key), ConfigDict)]
  lines = [*_HEAD, *(_row(key, config, said) for key in said if key in config and key not in groups)]
  for group in groups:
    lines += ["", f"## {group}", "", said[group], *_HEAD]
    lines += [_row(key, config, said) for key in said if key.startswith(f"{group}.")]
  return "\n".join(lines)


def _row(key: str, config: ConfigDict, said: dict[str, str]) -> str:
  return f"| `{key}` | {_default(key, config)} | {said[key].replace('|', chr(92) + '|').replace('[', '&#91;')} |"


def _default(key: str, config: ConfigDict) -> str:
  if key.startswith(_SHARED):
    values = {repr(of_one[key.removeprefix(_SHARED)]) for of_one in config.constraints.values()}
    return _shown(values.pop()) if len(values) == 1 else "below"
  for name in key.split("."):
    config = config[name]
  if not isinstance(config, ConfigDict):
    return _shown(repr(config))
  return ", ".join(f"{name} `{config[name]!r}`" for name in ("start", "gain", "parametrisation") if name in config)


def _shown(value: str) -> str:
  return "none" if value == "None" else f"`{value}`"


if __name__ == "__main__":
  print(tables())
