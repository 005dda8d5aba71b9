"""Reads and writes adapters in the format of the `peft` package: `adapter_config.json` and `adapter_model.safetensors`.

peft stores lora_A as [rank, in] and lora_B as [out, rank], block by block; ours are their transposes, stacked.
"""

from collections.abc import Iterator
import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import export_tensors
from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import stacks
from qempo_jax.models import tensor_names
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SHARD_BYTES = 2**62  # No sharding: peft reads one file.
# Keys of adapter_config.json with any value: read here, or without effect on a finished adapter's outputs.
_FREE = frozenset({
    "peft_type", "r", "lora_alpha", "use_rslora", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "lora_dropout", "target_modules", "exclude_modules", "layers_pattern", "megatron_core",
    "qalora_group_size", "runtime_config",
})  # fmt: skip
# Allowed values of other keys besides null, false and empty ones; the first is the default. Other initialisations
# may replace the base's weights too.
_PLAIN = {"bias": ("none",), "init_lora_weights": (True, "gaussian")}


def write(folder: pathlib.Path | None, adapters, config: ModelConfig, *, base_model: str | None) -> None:
  """Writes adapters for `peft.PeftModel.from_pretrained`.

  Args:
    folder: created if absent; None on all hosts but the first, which take part in gathering.
    adapters: from `lora.init`.
    config: the base's config.
    base_model: folder or Hugging Face id of the base, for the description; None: not stated.
  """
  layers = adapters["layers"]
  if refused := [name for name in layers if _shared(name, config)]:
    raise InputError(
      f"peft has no adapters of single experts or of parts of a fused projection, such as layers/{refused[0]} of this"
      " model; export the merged model"
    )
  tensors = _tensors(layers, config)
  if folder is None:
    for _ in tensors:
      pass
    return
  folder.mkdir(parents=True, exist_ok=True)
  first = next(iter(layers.values()))
  rank = first.a.shape[-1]
  description = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_model,
    "r": rank,
    "lora_alpha": first.scale * rank,
    "lora_dropout": 0.0,
    "target_modules": _targets(layers, config),
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "use_rslora": False,
  }
  export_tensors.write_safetensors(
    folder, tensors, max_shard_bytes=_SHARD_BYTES, stem=WEIGHTS_FILE.removesuffix(".safetensors")
  )
  (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read(folder: pathlib.Path, config: ModelConfig) -> dict[str, Any]:
  """Reads adapters that `write` or peft has written.

  Args:
    folder: holds both files.
    config: the base's config.

  Returns:
    Adapters as from `lora.init`, float32.

  Raises:
    InputError: a file is missing or damaged; a tensor is missing, unexpected or of another shape; or a key of the
      description has a value outside the allow-list of those without effect on the computation.
  """
  description = _description(folder / CONFIG_FILE)
  tensors = _read_tensors(folder / WEIGHTS_FILE)
  rank = description["r"]
  scale = description["lora_alpha"] / (rank**0.5 if description.get("use_rslora") else rank)
  layers = {}
  shapes_of_blocks = parameters.param_shapes(config)["layers"]
  for name in lora.TARGETS:
    blocks = _blocks(name, config)
    if name not in shapes_of_blocks or name in EXPERTS or _tensor_name(name, blocks[0], "A", config) not in tensors:
      continue
    if _shared(name, config):
      raise InputError(f"{folder} adapts a fused projection, {_module(name, 0, config)!r}, which is not supported")
    _, inputs, outputs = lora.matrix_shape(name, shapes_of_blocks[name])
    shapes = {"A": (rank, inputs), "B": (outputs, rank)}
    stacked = {
      kind: np.stack([_take(tensors, _tensor_name(name, block, kind, config), shape).T for block in blocks])
      for kind, shape in shapes.items()
    }
    layers[name] = lora.Adapter(jnp.asarray(stacked["A"]), jnp.asarray(stacked["B"]), scale)
  if tensors or not layers:
    what = tensor_names.listed(tensors) if tensors else "no adapter of a projection"
    raise InputError(f"{folder / WEIGHTS_FILE} holds {what}, which this decoder has no matrix for; is it its adapter?")
  return {"layers": layers}


def _targets(names, config: ModelConfig) -> list[str]:
  """Last parts of the adapted modules' names, or whole names if modules of other blocks have the same last parts."""
  modules_of = lambda names: {_module(name, block, config) for name in names for block in _blocks(name, config)}
  last = lambda modules: {module.rpartition(".")[2] for module in modules}
  adapted = modules_of(names)
  others = modules_of(set(parameters.param_shapes(config)["layers"]) & set(lora.TARGETS)) - adapted
  return sorted(adapted if last(others) & last(adapted) else last(adapted))


def _tensors(layers, config) -> Iterator[tuple[str, np.ndarray]]:
  for block in range(config.num_layers):
    for name, adapter in layers.items():
      if block not in _blocks(name, config):
        continue
      for kind, leaf in (("A", adapter.a), ("B", adapter.b)):
        part = export_tensors.host_part(leaf, (_blocks(name, config).index(block),))
        yield _tensor_name(name, block, kind, config), np.ascontiguousarray(part.T.astype(np.float32))


def _shared(name: str, config: ModelConfig) -> bool:
  """True if a projection has no module of its own in PyTorch transformers."""
  kind = config.kinds[_blocks(name, config)[0]]
  own = [other for other in parameters.param_shapes(config)["layers"] if stacks.has(other, kind)]
  return name in EXPERTS or [_module(other, 0, config) for other in own].count(_module(name, 0, config)) > 1


def _blocks(name: str, config: ModelConfig) -> list[int]:
  return stacks.members(name, config.kinds)


def _module(name: str, block: int, config: ModelConfig) -> str:
  return tensor_names.block_name(name, block, config).removesuffix(".weight")


def _tensor_name(name: str, block: int, kind: str, config: ModelConfig) -> str:
  return f"{_PREFIX}{_module(name, block, config)}.lora_{kind}.weight"


def _take(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, int]) -> np.ndarray:
  if name not in tensors:
    raise InputError(f"the adapter has no tensor {name!r}; all blocks need the same targets")
  tensor = np.asarray(tensors.pop(name), np.float32)
  if tensor.shape != shape:
    raise InputError(f"tensor {name!r} has shape {tensor.shape}, which does not fit {shape} of the base and rank")
  if not np.isfinite(tensor).all():
    raise InputError(f"tensor {name!r} holds NaN or infinity; the adapter is damaged")
  return tensor


def _description(path: pathlib.Path) -> dict[str, Any]:
  description = read_json(path, "give the folder that peft's save_pretrained wrote")
  if description.get("peft_type") != "LORA":
    raise InputError(f"{path}: peft_type={description.get('peft_type')!r} is not supported, only 'LORA'")
  for key in sorted(description.keys() - _FREE):
    value, allowed = description[key], _PLAIN.get(key, (None,))
    known = value.lower() if isinstance(value, str) else value
    if value and known not in allowed:
      raise InputError(
        f"{path}: {key}={value!r} is not supported, since it may change the adapter's computation; it must be"
        f" {allowed[0]!r}"
      )
  for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
    value = description.get(key)
    if type(value) not in kinds or not 0 < value < math.inf:
      raise InputError(f"{path}: {key}={value!r} must be a positive {'whole ' * (key == 'r')}number")
  if not isinstance(description.get("use_rslora", False), bool | None):
    raise InputError(f"{path}: use_rslora={description['use_rslora']!r} must be true or false")
  return description


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors

  try:
    with safetensors.safe_open(path, framework="numpy") as opened:
      return {name: opened.get_tensor(name) for name in opened.keys()}
  except Exception as error:  # safetensors raises its own untyped errors.
    raise InputError(f"{path} is missing, damaged or cut short ({error}); fetch it again") from error
