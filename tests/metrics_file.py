"""Metrics that two runs of one program must share: all but clocks and the compilation cache's hits."""

import json
import pathlib

OF_ONE_RUN = ("second", "compilations")  # parts of names


def timeless(path: pathlib.Path) -> list[dict]:
  """The rows of a metrics.jsonl without what no two runs share."""
  rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
  return [{name: value for name, value in row.items() if not any(part in name for part in OF_ONE_RUN)} for row in rows]
