"""The model and the tokens of all sides: `python -m experiments.benchmarks.bench.inputs FOLDER [tiny]`.

`FOLDER/policy` and `FOLDER/reference` are folders in Hugging Face's format. The reference is the policy plus seeded
noise of 2 % of each matrix's standard deviation, so that losses are not those of two equal models. `tokens.npy` holds
the token ids of the licence, a stable English text.
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np

from qempo_jax.data import tokenization
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import export
from qempo_jax.models import parameters

NOISE = 0.02
ROOT = pathlib.Path(__file__).parents[3]


def make(folder: pathlib.Path, tiny: bool) -> None:
  """Makes the absent files."""
  if (folder / "tokens.npy").exists():
    return
  source = demo_model.demo_model_path()
  config, params = conversion.load(source)
  tokenizer = tokenization.load_tokenizer(str(source))
  if tiny:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    config = dataclasses.replace(config, head_dim=16, **sizes)
    params = jax.tree.map(np.asarray, parameters.init(jax.random.key(0), config, stddev=0.1))
  export.export_model(folder / "policy", params, config, tokenizer=tokenizer)
  rng = np.random.default_rng(0)
  noisy = lambda leaf: (
    leaf if leaf.ndim < 2 else leaf + NOISE * leaf.std() * rng.standard_normal(leaf.shape, np.float32)
  )
  export.export_model(folder / "reference", jax.tree.map(noisy, params), config, tokenizer=tokenizer)
  text = (ROOT / "LICENSE").read_text(encoding="utf-8")
  np.save(folder / "tokens.npy", np.array(tokenizer.encode(text), np.int32))


if __name__ == "__main__":
  make(pathlib.Path(sys.argv[1]), "tiny" in sys.argv[2:])
