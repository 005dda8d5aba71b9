"""Makes the parity table of docs/models.md: worst differences from PyTorch transformers of each tiny golden checkpoint.

  python -m tests.models.parity_table [NAME ...]  # needs torch; all take about 4 minutes on 2 cores

Columns: logits of rows padded on the right and on the left; log-probs and entropies of packed rows; logits decoded from
a cache; PyTorch's logits of the checkpoint written back with a config.json made from the decoder's shape alone; PyTorch's
logits of merged adapters, against the unmerged ones here.
"""

import pathlib
import re
import sys
import tempfile

import jax
import numpy as np

from qempo_jax.models import export
from qempo_jax.models import lora
from qempo_jax.models import verify_export
from tests.models import families_test

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- parity table: python -m tests.models.parity_table -->\n", "<!-- end of parity table -->\n"
COLUMNS = ("logits", "left padding", "packed rows", "cached decoding", "exported", "LoRA, merged")


def differences(name: str) -> list[float]:
  """A checkpoint's worst difference for each of `COLUMNS`."""
  config, params, golden = families_test._load(name)
  worst = lambda ours, theirs: float(np.abs(np.asarray(ours) - theirs).max())
  left, right = families_test._forward(config, params, golden)
  packed, expected, _ = families_test._score_packed(name, differentiate=False)
  found = [worst(right, golden["right"]), worst(left, golden["left"]), worst(packed, expected)]
  found.append(max(worst(*pair) for pair in families_test._decode(name)))
  adapters = _adapters(params)
  for tree, merged in ((params, params), (lora.apply(params, adapters), lora.merge(params, adapters))):
    with tempfile.TemporaryDirectory() as folder:
      out = export.export_model(pathlib.Path(folder) / "out", jax.device_get(merged), config)
      tokens, valid = verify_export._rows(config.vocab_size, 0)
      tokens, valid = tokens[:, -17:], valid[:, -17:]  # no longer than the golden rows, for whose length it is
      theirs = verify_export._pytorch_logits(out, tokens, valid)
    found.append(worst(_logits(tree, config, tokens, valid), theirs))
  return found


def _logits(params, config, tokens, valid):
  positions = np.cumsum(valid, axis=1) - 1
  mask = families_test.transformer.causal_mask(positions, valid)
  return np.asarray(families_test._logits(config, params, tokens, positions, mask))[valid]


def _adapters(params):
  """Random adapters of every projection, experts included."""
  adapters = lora.init(jax.random.key(1), params, lora.LoraConfig(2, 4.0, "layers/"))
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return tree.unflatten([0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


def main(names: list[str]) -> None:
  """Writes rows of the named checkpoints, or of all, into the page's table."""
  measured = {}
  for name in names or families_test.FAMILIES:
    measured[name] = f"| {name} | " + " | ".join(f"{value:.0e}" for value in differences(name)) + " |"
    print(measured[name], flush=True)
  start, table, end = re.split(f"(?<={START})(.*?)(?={END})", PAGE.read_text(), flags=re.DOTALL)
  kept = {line.split()[1]: line for line in table.splitlines()[2:]} if names else {}
  rows = kept | measured
  heads = ["| checkpoint | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
  PAGE.write_text(start + "\n".join([*heads, *map(rows.get, sorted(rows))]) + "\n" + end)


if __name__ == "__main__":
  main(sys.argv[1:])
