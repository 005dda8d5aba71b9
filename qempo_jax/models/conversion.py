"""Loads weights: Hugging Face safetensors folders and GGUF files to the parameter tree."""

import pathlib

import jax
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import gguf_files
from qempo_jax.models import placing
from qempo_jax.models import safetensors_files
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import expand_path

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(
  source: str | pathlib.Path, *, mesh: jax.sharding.Mesh | None = None, dtype=np.float32
) -> tuple[ModelConfig, dict]:
  """Loads a checkpoint, tensor by tensor.

  Args:
    source: a `.gguf` file, a folder of safetensors with its `config.json`, or a Hugging Face id.
    mesh: mesh of the parameters, sharded by `sharding.PARAM_RULES` as they are read, so that the host holds about one
      stacked leaf at a time; None: NumPy arrays on the host.
    dtype: dtype of the parameters, independent of the checkpoint's.

  Returns:
    (the decoder's config, its parameters).

  Raises:
    InputError: the source cannot be read, or is not a supported checkpoint.
  """
  path = expand_path(source)
  if path.suffix in PICKLED:
    raise InputError(f"{path}: {safetensors_files.WHY_NO_PICKLE}")
  make_leaf = placing.on_host(dtype) if mesh is None else placing.onto_mesh(mesh, dtype=dtype)
  if path.suffix == ".gguf":
    return gguf_files.load(path, make_leaf)
  if path.suffix == ".safetensors" and path.is_file():
    raise InputError(f"{path} is one file of a checkpoint; give its folder, which holds config.json too")
  if not path.is_dir():
    path = _download(str(source))
  return safetensors_files.load(path, make_leaf)


def _download(name: str) -> pathlib.Path:
  import huggingface_hub

  included = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
  # Repositories of Mistral and gpt-oss hold their weights twice, once in their makers' own format.
  excluded = ["consolidated*", "original/*"]
  try:
    folder = huggingface_hub.snapshot_download(name, allow_patterns=included, ignore_patterns=excluded)
    return pathlib.Path(folder)
  except Exception as error:  # Network and hub errors of any kind.
    raise InputError(
      f"{name!r} is neither a local model folder nor a model that can be downloaded"
      f" ({type(error).__name__}); check the name, or give a folder"
    ) from error
