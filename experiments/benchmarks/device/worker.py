"""The process of one part: measures its cases in turn and writes one JSON line each."""

import importlib
import json
import os
import sys

# Kind of measurement -> the module whose `measure(**settings)` returns its figures.
KINDS = {
  "ceilings": "ceilings",
  "agreement": "agreement",
  "attention": "attention_paths",
  "token_stats": "token_sums",
  "decode": "decoding",
  "training": "training",
  "grpo": "grpo",
  "planted": "planted",
}


def main() -> None:
  """Reads the kind and the cases from the first argument; JAX is imported by the modules that need it."""
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # Compile times are those of a first run.
  told = json.loads(sys.argv[1])
  out = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # Libraries that print write to standard error.

  module = importlib.import_module(f"experiments.benchmarks.device.{KINDS[told['kind']]}")
  for settings in told["cases"]:
    try:
      found = {"status": "done", "result": module.measure(**settings)}
    except Exception as error:  # noqa: BLE001 (the other cases go on)
      name, text = type(error).__name__, " ".join(str(error).split())
      # With an InputError the library says why it cannot compute this here.
      refused = {"status": "skipped", "reason": text}
      found = refused if name == "InputError" else {"status": "failed", "reason": f"{name}: {text[:300]}"}
    out.write(json.dumps(found) + "\n")
    out.flush()


if __name__ == "__main__":
  main()
