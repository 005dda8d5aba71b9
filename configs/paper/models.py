"""What the paper configs share: the models, the slices they are trained on, and everything that is not a method.

Numbers here are our choice: slices, batch sizes, lengths, learning rates and multipliers' gains. They are starting
points that are compiled, not results.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base


class Model(NamedTuple):
  """A model and the slice it is trained on.

  Attributes:
    source: Hugging Face id.
    topology: TPU slice.
    mesh: devices along (data, fsdp, tensor).
  """

  source: str
  topology: str
  mesh: tuple[int, int, int]


MODELS = {
  "qwen2.5-0.5b": Model("Qwen/Qwen2.5-0.5B-Instruct", "v5p:2x2x1", (1, 4, 1)),
  "qwen2.5-1.5b": Model("Qwen/Qwen2.5-1.5B-Instruct", "v5p:2x2x1", (1, 4, 1)),
  "qwen2.5-7b": Model("Qwen/Qwen2.5-7B-Instruct", "v5p:2x2x4", (1, 16, 1)),
  "llama-3.2-1b": Model("meta-llama/Llama-3.2-1B-Instruct", "v5p:2x2x1", (1, 4, 1)),
  "llama-3.1-8b": Model("meta-llama/Llama-3.1-8B-Instruct", "v5p:2x2x4", (1, 16, 1)),
}


def get_config(model: str) -> ConfigDict:
  """The defaults for one model, by its name in `MODELS`."""
  config = base.get_config()
  chosen = MODELS[model]
  rows = chosen.mesh[0] * chosen.mesh[1]  # one a device at a time
  config.model.source = chosen.source
  config.compute.mesh = chosen.mesh
  config.compute.dtype = "bfloat16"
  config.compute.bucket = 128  # rows that the TPU's attention kernel takes
  config.compute.micro_batches = max(1, 64 // rows)
  config.data.prompts_per_step = 64
  config.offline.pairs_per_step = 64
  config.optimizer.warmup_steps = 50
  config.optimizer.final_fraction = 0.1
  config.checkpoint.every = 100
  return config


def split(argument: str, methods: tuple[str, ...]) -> tuple[str, str]:
  """(model, method) of an argument such as "qwen2.5-7b,qempo_kl"."""
  model, _, method = argument.partition(",")
  if model not in MODELS or method not in methods:
    raise ValueError(
      f"{argument!r} is not MODEL,METHOD with a model of {', '.join(MODELS)} and a method of {', '.join(methods)}"
    )
  return model, method
