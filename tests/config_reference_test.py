"""The configuration reference says of every key of configs/base.py what it means."""

import importlib.util
import pathlib

from configs import base
from experiments import overrides

ROOT = pathlib.Path(__file__).parents[1]


def test_every_key_has_a_default_and_a_meaning():
  path = ROOT / "docs" / "hooks" / "config_reference.py"
  spec = importlib.util.spec_from_file_location("config_reference", path)
  reference = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(reference)
  page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
  made = reference.on_page_markdown(page)
  rows = {line.split("`")[1]: line.split(" | ", 2) for line in made.splitlines() if line.startswith("| `")}
  keys = {
    key if not key.startswith("constraints.") else f"constraints.NAME.{key.split('.')[2]}"
    for key in overrides.leaf_keys(base.get_config())
  }
  lacking = [key for key in keys if key not in rows and key.rpartition(".")[0] not in rows]
  assert len(keys) > 150 and lacking == []
  assert [key for key in keys & rows.keys() if len(rows[key][2]) < 5] == []
  said = rows["reward.function"][2]  # one comment above the line and one behind it
  assert "dotted path" in said and "refused where rewards are needed" in said
  assert rows["data.max_prompt_length"][1] == "`512`" and rows["reward.max"][1] == "none"
