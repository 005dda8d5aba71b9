"""Models, their TPU slices and all settings but the method's, shared by the paper configs.

Slices, batch sizes, lengths, learning rates and gains are our choice: starting points that compile, not results.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base


class Model(NamedTuple):
  """A model and its TPU slice.

  Attributes:
    source: Hugging Face id.
    topology: TPU slice.
    mesh: devices along (data, fsdp, tensor), or (data, fsdp, tensor, sequence) for rows longer than a device holds.
    long: compiled with responses of 8192 tokens (online_math_long.py) in place of the other tasks.
    sampling_mesh: the mesh while sampling; (): the same.
    moments_dtype: of Adam's moments.
  """

  source: str
  topology: str
  mesh: tuple[int, ...]
  long: bool = False
  sampling_mesh: tuple[int, ...] = ()
  moments_dtype: str = "float32"


MODELS = {
  "qwen2.5-0.5b": Model("Qwen/Qwen2.5-0.5B-Instruct", "v5p:2x2x1", (1, 4, 1)),
  "qwen2.5-1.5b": Model("Qwen/Qwen2.5-1.5B-Instruct", "v5p:2x2x1", (1, 4, 1)),
  "qwen2.5-7b": Model("Qwen/Qwen2.5-7B-Instruct", "v5p:2x2x4", (1, 16, 1)),
  "llama-3.2-1b": Model("meta-llama/Llama-3.2-1B-Instruct", "v5p:2x2x1", (1, 4, 1)),
  "llama-3.1-8b": Model("meta-llama/Llama-3.1-8B-Instruct", "v5p:2x2x4", (1, 16, 1)),
  "qwen3-8b": Model("Qwen/Qwen3-8B", "v5p:2x2x4", (1, 8, 1, 2), long=True, sampling_mesh=(1, 16, 1)),
  "qwen3-30b-a3b": Model("Qwen/Qwen3-30B-A3B", "v5p:4x4x4", (1, 16, 4), long=True),
  "llama-3.3-70b": Model(
    "meta-llama/Llama-3.3-70B-Instruct", "v5p:4x8x8", (1, 8, 4, 8), True, (1, 32, 8), moments_dtype="bfloat16"
  ),
}


def get_config(model: str) -> ConfigDict:
  """Defaults for the model of this name in `MODELS`."""
  config = base.get_config()
  chosen = MODELS[model]
  rows = chosen.mesh[0] * chosen.mesh[1]  # One row a device at a time.
  config.model.source = chosen.source
  config.compute.mesh = chosen.mesh
  config.sampling.mesh = chosen.sampling_mesh
  config.optimizer.moments_dtype = chosen.moments_dtype
  config.compute.dtype = "bfloat16"
  config.compute.bucket = 128  # Row lengths of the TPU's attention kernel.
  config.compute.micro_batches = max(1, 64 // rows)
  config.data.prompts_per_step = 64
  config.offline.pairs_per_step = 64
  config.optimizer.warmup_steps = 50
  config.optimizer.final_fraction = 0.1
  config.checkpoint.every = 100
  return config


def split(argument: str, methods: tuple[str, ...]) -> tuple[str, str]:
  """Splits an argument such as "qwen2.5-7b,qempo_kl" into (model, method)."""
  model, _, method = argument.partition(",")
  if model not in MODELS or method not in methods:
    raise ValueError(
      f"{argument!r} is not MODEL,METHOD: models are {', '.join(MODELS)}; methods are {', '.join(methods)}"
    )
  return model, method
