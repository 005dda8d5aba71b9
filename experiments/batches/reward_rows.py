"""Rows of a reward model's pairs, and the frozen blocks' output kept on disk so that they run once a pair."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments.plan import Policy
from experiments.run import workdir as workdirs
from qempo_jax import sharding
from qempo_jax.data import columns
from qempo_jax.errors import InputError
from qempo_jax.models import reward_head
from qempo_jax.paths import read_json
from qempo_jax.train import reward_step

PARTS = ("train", "validation", "heldout")


class RewardData(NamedTuple):
  """Encoded pairs of one part.

  Attributes:
    prompts: token ids.
    responses: of each, (chosen, rejected) token ids with their ending tokens.
    margins: [N] of the loss, reward units.
    prompt_keys: [N] what pairs of one prompt share.
    sources: [N] which data set each came from.
    dropped: pairs left out because a prompt or a response is too long.
  """

  prompts: list[list[int]]
  responses: list[tuple]
  margins: np.ndarray
  prompt_keys: np.ndarray
  sources: np.ndarray
  dropped: int

  def lengths(self) -> np.ndarray:
    """[N] tokens of each pair, its prompt once."""
    return np.array([len(p) + sum(map(len, pair)) for p, pair in zip(self.prompts, self.responses)])


def fingerprint(parts: dict[str, RewardData]) -> str:
  """A hash of all pairs, in order, by which a resumed run recognises them."""
  digest = hashlib.sha256()
  for part in PARTS:
    found = parts[part]
    ids = ([p, *map(list, pair)] for p, pair in zip(found.prompts, found.responses))
    digest.update(f"[{json.dumps(part)}, ".encode())
    for text in columns.json_list(json.dumps(one, default=int) for one in ids):
      digest.update(text.encode())
    digest.update(f", {json.dumps(found.margins.tolist())}]".encode())
  return digest.hexdigest()


class RewardRows:
  """Packed rows of any pairs of any part, with the frozen blocks' output beside them where it is kept."""

  def __init__(self, parts: dict[str, RewardData], *, bucket: int):
    """Packs nothing yet.

    Args:
      parts: the pairs.
      bucket: multiple to which rows are rounded up, tokens.
    """
    self._parts, self._bucket, self._hidden = parts, bucket, None

  def keep_frozen(self, model: Policy, frozen, workdir: pathlib.Path, size: int, note) -> None:
    """Runs the frozen blocks over all pairs, or takes up where an earlier run stopped.

    Args:
      model: the model before training.
      frozen: the frozen part of the parameters.
      workdir: where the output is kept.
      size: pairs of a batch.
      note: told how far it is.
    """
    self._starts, total = {}, 0
    for part, found in self._parts.items():
      stops = total + np.cumsum(found.lengths())
      self._starts[part], total = stops - found.lengths(), int(stops[-1])
    self._fill(model, frozen, workdir, total, size, note)

  def __call__(self, part: str, indices, rows: int) -> reward_step.RewardBatch:
    """A batch of some pairs, filled up to `rows` with rows of weight 0."""
    batch = self._packed(part, indices, rows)
    if self._hidden is None:
      return batch
    hidden = np.zeros((*batch.tokens.shape, self._hidden.shape[1]), np.float32)
    lengths = self._parts[part].lengths()
    for row, index in enumerate(indices):
      start = self._starts[part][index]
      hidden[row, : lengths[index]] = self._hidden[start : start + lengths[index]]
    return batch.replace(hidden=hidden)

  def _packed(self, part, indices, rows):
    found = self._parts[part]
    take = lambda values: [values[index] for index in indices]
    return reward_step.pack_pairs(
      take(found.prompts), take(found.responses), take(found.margins), bucket=self._bucket, rows=rows
    )

  def _fill(self, model, frozen, workdir, total, size, note) -> None:
    width = model.config.hidden_size
    path, state = workdir / "frozen.float32", workdir / "frozen.json"
    mark = {"pairs": fingerprint(self._parts), "tokens": total, "width": width, "done": 0}
    mark |= {"model": model.source, "dtype": model.config.compute_dtype, "blocks": reward_head.frozen_blocks(frozen)}
    if state.exists() and path.exists():
      earlier = read_json(state, "remove it; the blocks' outputs are computed again")
      mark["done"] = earlier["done"] if earlier | {"done": 0} == mark else 0
    if not mark["done"]:
      _reserve(path, 4 * total * width)
    self._hidden = np.memmap(path, np.float32, "r+", shape=(total, width))
    places = [(part, index) for part in self._parts for index in range(len(self._parts[part].prompts))]
    lengths = np.concatenate([self._parts[part].lengths() for part in self._parts])
    order = np.argsort(lengths, kind="stable")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen), sharding.rows_sharding(model.mesh, size)
    run = jax.jit(functools.partial(reward_step.frozen_hidden, config=model.config), in_shardings=shardings)
    for start in range(mark["done"], len(order), size):
      chosen = [places[index] for index in order[start : start + size]]
      found = [self._parts[part] for part, _ in chosen]
      pairs = [(p.prompts[i], p.responses[i], 0.0) for p, (_, i) in zip(found, chosen)]
      batch = reward_step.pack_pairs(*zip(*pairs), bucket=self._bucket, rows=size)
      for row, (hidden, (part, index)) in enumerate(zip(np.asarray(run(frozen, batch)), chosen)):
        first, count = self._starts[part][index], lengths[order[start + row]]
        self._hidden[first : first + count] = hidden[:count]
      if start // size % 20 == 19 or start + size >= len(order):
        self._hidden.flush()
        mark["done"] = min(start + size, len(order))
        workdirs.write(state, json.dumps(mark) + "\n")
        note(f"frozen blocks: {mark['done']} of {len(order)} pairs")


def _reserve(path: pathlib.Path, size: int) -> None:
  """Makes a file whose bytes all have their place on the disk: a full one ends the process where a mapped page is written."""
  try:
    with open(path, "wb") as file:
      file.truncate(size)
      if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    with contextlib.suppress(OSError):  # nothing was made on a read-only disk
      path.unlink(missing_ok=True)
    raise InputError(
      f"{path} takes {size / 1e9:.2f} GB, and there is no room ({error.strerror}); free space there, or set"
      " reward_model.cache to False"
    ) from error
