"""Weights in: Hugging Face safetensors folders and GGUF files to the parameter tree."""

import pathlib

import jax
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import gguf_files
from qempo_jax.models import placing
from qempo_jax.models import safetensors_files
from qempo_jax.models.config import ModelConfig

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(
  source: str | pathlib.Path, *, mesh: jax.sharding.Mesh | None = None, dtype=np.float32
) -> tuple[ModelConfig, dict]:
  """Loads a checkpoint, tensor by tensor.

  Args:
    source: a `.gguf` file, a folder of safetensors with its `config.json`, or a Hugging Face id.
    mesh: devices to put the parameters on by `sharding.PARAM_RULES` as they are read, so that the host holds about
      one stacked leaf at a time; None for NumPy arrays on the host.
    dtype: of the parameters, whatever the checkpoint's own.

  Returns:
    (the decoder's shape, its parameters).

  Raises:
    InputError: nothing readable is there, or it is not a checkpoint that this decoder computes.
  """
  path = pathlib.Path(source).expanduser()
  if path.suffix in PICKLED:
    raise InputError(f"{path}: {safetensors_files.WHY_NO_PICKLE}")
  place = placing.on_host(dtype) if mesh is None else placing.onto_mesh(mesh, dtype=dtype)
  if path.suffix == ".gguf":
    return gguf_files.load(path, place)
  if path.suffix == ".safetensors" and path.is_file():
    raise InputError(f"{path} is one file of a checkpoint; give its folder, which holds config.json too")
  if not path.is_dir():
    path = _download(str(source))
  return safetensors_files.load(path, place)


def _download(name: str) -> pathlib.Path:
  import huggingface_hub

  wanted = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
  # Mistral's repositories hold their weights twice, once under names of their own.
  unwanted = ["consolidated*"]
  try:
    folder = huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted)
    return pathlib.Path(folder)
  except Exception as error:  # every kind of network and hub error
    raise InputError(
      f"{name!r} is neither a local model folder nor a model that can be fetched"
      f" ({type(error).__name__}); check the name, or give a folder"
    ) from error
