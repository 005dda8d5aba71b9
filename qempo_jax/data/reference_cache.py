"""On-disk cache of the reference model's log-probs of responses, verified on every read.

The key of a value hashes everything it depends on: the model's parameters and shape, the tokenizer with its template,
the scorer's settings, and the example's token ids. Any change gives another key, so a stale value is never read.
"""

from collections.abc import Callable
from collections.abc import Sequence
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any
import zipfile

import jax
import numpy as np

from qempo_jax.data.pair_tokens import PairTokens
from qempo_jax.errors import InputError


def model_hash(params: Any, config: Any) -> str:
  """Returns the SHA-256 over the names, shapes, types and bytes of all parameters, and the model's config."""
  digest = hashlib.sha256(repr(config).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(jax.device_get(leaf))
    digest.update(repr((jax.tree_util.keystr(path), array.shape, str(array.dtype))).encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
  return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
  """Returns the SHA-256 over the vocabulary, the special tokens and the chat template."""
  vocabulary = sorted(tokenizer.get_vocab().items())
  special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
  parts = [vocabulary, special, tokenizer.chat_template]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def example_keys(pairs: PairTokens, *, model: str, tokenizer: str, settings: dict[str, Any]) -> np.ndarray:
  """Returns [N, 32] bytes: the hash of each example with everything that its log-probs depend on."""
  head = hashlib.sha256(json.dumps([model, tokenizer, settings], sort_keys=True).encode()).digest()
  keys = []
  for prompt, group in zip(pairs.prompts, pairs.responses):
    digest = hashlib.sha256(head)
    for ids in (prompt, *group):
      digest.update(np.asarray([len(ids), *ids], np.int64).tobytes())
    keys.append(np.frombuffer(digest.digest(), np.uint8))
  return np.stack(keys)


def get_or_compute(
  path: pathlib.Path, keys: np.ndarray, compute: Callable[[Sequence[int]], np.ndarray]
) -> tuple[np.ndarray, int]:
  """Reads the examples' log-probs from the file, computes the missing ones and adds them to the file.

  Args:
    path: a .npz file, created if absent.
    keys: [N, 32] of `example_keys`.
    compute: maps n indices into the N examples to their log-probs [n, G], in nats.

  Returns:
    ([N, G] log-probs, number of examples computed).

  Raises:
    InputError: the file is damaged, or a computed value is not finite.
  """
  known = _load(path)
  missing = [index for index, key in enumerate(keys) if key.tobytes() not in known]
  if missing:
    values = np.asarray(compute(missing), np.float32)
    if not np.isfinite(values).all():
      index = missing[int(np.argmin(np.isfinite(values).all(axis=1)))]
      raise InputError(f"the reference's log-probs of example {index} are not finite; check its text and the model")
    known |= {keys[index].tobytes(): value for index, value in zip(missing, values)}
    _save(path, known)
  return np.stack([known[key.tobytes()] for key in keys]), len(missing)


def _checksum(keys, values) -> np.ndarray:
  digest = hashlib.sha256(np.ascontiguousarray(keys).tobytes() + np.ascontiguousarray(values).tobytes()).digest()
  return np.frombuffer(digest, np.uint8)


def _load(path) -> dict[bytes, np.ndarray]:
  if not path.exists():
    return {}
  try:
    with np.load(path, allow_pickle=False) as stored:
      keys, values, checksum = stored["keys"], stored["values"], stored["checksum"]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise InputError(f"the cached log-probs {path} cannot be read ({error}); remove the file") from error
  if not np.array_equal(_checksum(keys, values), checksum):
    raise InputError(f"the cached log-probs {path} do not match their checksum; remove the file")
  return {key.tobytes(): value for key, value in zip(keys, values)}


def _save(path, known) -> None:
  keys = np.stack([np.frombuffer(key, np.uint8) for key in known])
  values = np.stack(list(known.values()))
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(descriptor, "wb") as file:
      np.savez(file, keys=keys, values=values, checksum=_checksum(keys, values))
    os.replace(scratch, path)
  except BaseException:
    pathlib.Path(scratch).unlink(missing_ok=True)
    raise
