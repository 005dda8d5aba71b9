"""Exports models to folders that `AutoModelForCausalLM.from_pretrained` loads, written atomically."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax

from qempo_jax.data import special_tokens
from qempo_jax.errors import InputError
from qempo_jax.models import export_tensors
from qempo_jax.models import hugging_face_out
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import expand_path

# Files that an exported model keeps from its source folder.
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md")


def export_model(
  target: str | pathlib.Path,
  params,
  config: ModelConfig,
  *,
  tokenizer=None,
  source: str | pathlib.Path | None = None,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes a model with its configuration, generation settings, tokenizer and chat template.

  Args:
    target: output folder; it must be absent or empty.
    params: the parameter tree, with any sharding.
    config: the decoder's config.
    tokenizer: a transformers tokenizer; None: not written.
    source: source of the model. From a folder, config.json and generation settings are kept as far as they still hold.
      With a tokenizer, both list every stop token.
    dtype: dtype of the written weights: "float32", "bfloat16" or "float16".
    max_shard_bytes: largest weight file, bytes.

  Returns:
    The folder.

  Raises:
    InputError: the target is not empty or cannot be written, or the parameters are not finite or overflow the dtype. No
      file is left then.
  """
  tensors = export_tensors.to_hugging_face_names(params, config, dtype=dtype)
  origin = expand_path(source) if source is not None else None
  description = _description(config, origin, tokenizer, dtype)
  with new_folder(target) as folder:
    if folder is None:  # Another host writes; this one takes part in gathering the tensors.
      for _ in tensors:
        pass
      return expand_path(target)
    export_tensors.write_safetensors(folder, tensors, max_shard_bytes=max_shard_bytes)
    write_json(folder / "config.json", description)
    write_companions(folder, tokenizer, origin)
  return expand_path(target)


@contextlib.contextmanager
def new_folder(target: str | pathlib.Path) -> Iterator[pathlib.Path | None]:
  """A new folder that is renamed to the target on success, and removed on failure.

  Args:
    target: must be absent or empty.

  Yields:
    The folder, in the target's parent; None on all hosts but the first.

  Raises:
    InputError: the target is not an empty folder, or its parent cannot be written.
  """
  target = expand_path(target)
  if jax.process_index() > 0:
    yield None
    return
  check_target(target)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
  except OSError as error:
    raise InputError(f"cannot write into {target.parent} ({error.strerror or error}); name another folder") from error
  try:
    yield scratch
    for file in scratch.iterdir():
      if file.is_file():
        file.chmod(0o644)  # Writers of weights make theirs for the owner alone.
        _sync(file)
    scratch.chmod(0o755)
    if target.is_dir():
      target.rmdir()  # Fails unless it is empty.
    os.rename(scratch, target)
  except OSError as error:
    raise InputError(f"cannot write {target} ({error.strerror or error}); free some space or name another") from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def check_target(target: pathlib.Path) -> None:
  """Checks that a target is absent or an empty folder.

  Raises:
    InputError: the target is a file, or not empty.
  """
  if target.is_dir() and any(target.iterdir()):
    raise InputError(f"{target} is not empty; name another folder, or remove it if it is not needed")
  if target.exists() and not target.is_dir():
    raise InputError(f"{target} is a file; name a folder")


def write_companions(folder: pathlib.Path, tokenizer, origin: pathlib.Path | None) -> None:
  """Writes the files besides weights and config: generation settings, licence, tokenizer and chat template."""
  for name in _LICENCE_FILES:
    if origin is not None and (origin / name).is_file():
      shutil.copyfile(origin / name, folder / name)
  settings = _settings(origin)[0]
  if tokenizer is not None:
    settings = settings or {"_from_model_config": False, **token_ids(tokenizer)}
    if settings.get("_from_model_config"):
      del settings["_from_model_config"]  # With this key, transformers would derive them from config.json again.
    settings |= _stops(tokenizer, origin)
    tokenizer.save_pretrained(folder)
  if settings:
    write_json(folder / "generation_config.json", settings)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes a JSON object with sorted keys."""
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def token_ids(tokenizer) -> dict[str, int]:
  """Ids of the special tokens in config.json."""
  names = ("bos_token_id", "eos_token_id", "pad_token_id")
  ids = {name: getattr(tokenizer, name, None) for name in names}
  return {name: value for name, value in ids.items() if value is not None}


def _description(config, origin, tokenizer, dtype) -> dict[str, Any]:
  longest = getattr(tokenizer, "model_max_length", None)
  written = hugging_face_out.to_hugging_face(
    config,
    source=_settings(origin)[1] or None,
    dtype=dtype,
    max_length=longest if isinstance(longest, int) and longest < 10**9 else None,
    tokens=token_ids(tokenizer) if tokenizer is not None else None,
  )
  return written if tokenizer is None else written | _stops(tokenizer, origin)


def _settings(origin: pathlib.Path | None) -> list[dict[str, Any]]:
  """The source's generation settings and config.json, each empty if absent."""
  return [special_tokens.read_settings(origin, name) if origin else {} for name in special_tokens.SETTINGS_FILES]


def _stops(tokenizer, origin) -> dict[str, Any]:
  """`eos_token_id`: ids at which the model was trained to end a response."""
  stops = list(special_tokens.stop_token_ids(tokenizer, _settings(origin)))
  return {"eos_token_id": stops[0] if len(stops) == 1 else stops} if stops else {}


def _sync(file: pathlib.Path) -> None:
  """Waits until a file is on disk, so that the folder is renamed only after its contents are."""
  with file.open("rb") as opened:
    os.fsync(opened.fileno())
