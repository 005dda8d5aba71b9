"""Batches of a reward model's pairs, and the frozen blocks' output kept on disk so that they run once a pair."""

import functools
import json
import os
import pathlib

import jax
import numpy as np

from experiments import reward_builders
from experiments import workdir as workdirs
from experiments.loops import runs
from qempo_jax.errors import InputError
from qempo_jax.models import reward_head
from qempo_jax.train import reward_step

_WINDOW = 16  # batches whose pairs are sorted by length together, which leaves less padding


def batch_indices(step: int, size: int, lengths: np.ndarray, seed: int) -> np.ndarray:
  """Which pairs a step visits: a pure function of (seed, step), each pair once an epoch; the last may be fewer."""
  epoch, place = divmod(step, -(-len(lengths) // size))
  rng = np.random.default_rng([seed, epoch])
  order = rng.permutation(len(lengths))
  windows = [order[start : start + _WINDOW * size] for start in range(0, len(order), _WINDOW * size)]
  alike = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
  batches = [alike[start : start + size] for start in range(0, len(alike), size)]
  return batches[rng.permutation(len(batches))[place]]


class Batches:
  """Batches of any pairs of any part, with the frozen blocks' output beside them where it is kept."""

  def __init__(self, config, model, parts: dict[str, reward_builders.Pairs], frozen, workdir: pathlib.Path, note):
    """Runs the frozen blocks over all pairs, or takes up where an earlier run stopped.

    Args:
      config: a complete config.
      model: the model before training.
      parts: the pairs.
      frozen: the frozen part of the parameters.
      workdir: where the output is kept.
      note: told how far it is.
    """
    self._config, self._parts, self._hidden = config, parts, None
    if config.reward_model.cache:
      self._starts, total = {}, 0
      for part, found in parts.items():
        stops = total + np.cumsum(found.lengths())
        self._starts[part], total = stops - found.lengths(), int(stops[-1])
      self._fill(model, frozen, workdir, total, note)

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
    bucket = self._config.compute.bucket
    return reward_step.pack_pairs(
      take(found.prompts), take(found.responses), take(found.margins), bucket=bucket, rows=rows
    )

  def _fill(self, model, frozen, workdir, total, note) -> None:
    config, width = self._config, model.config.hidden_size
    path, state = workdir / "frozen.float32", workdir / "frozen.json"
    mark = {"pairs": reward_builders.fingerprint(self._parts), "tokens": total, "width": width, "done": 0}
    mark |= {"model": config.model.source, "dtype": config.compute.dtype, "blocks": reward_head.frozen_blocks(frozen)}
    if state.exists() and path.exists():
      earlier = json.loads(state.read_text(encoding="utf-8"))
      mark["done"] = earlier["done"] if earlier | {"done": 0} == mark else 0
    if not mark["done"]:
      _reserve(path, 4 * total * width)
    self._hidden = np.memmap(path, np.float32, "r+", shape=(total, width))
    size = config.reward_model.pairs_per_step
    places = [(part, index) for part in self._parts for index in range(len(self._parts[part].prompts))]
    lengths = np.concatenate([self._parts[part].lengths() for part in self._parts])
    order = np.argsort(lengths, kind="stable")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen), runs.split(model.mesh, size)
    run = jax.jit(functools.partial(reward_step.frozen_hidden, config=model.config), in_shardings=shardings)
    for start in range(mark["done"], len(order), size):
      chosen = [places[index] for index in order[start : start + size]]
      found = [self._parts[part] for part, _ in chosen]
      pairs = [(p.prompts[i], p.responses[i], 0.0) for p, (_, i) in zip(found, chosen)]
      batch = reward_step.pack_pairs(*zip(*pairs), bucket=config.compute.bucket, rows=size)
      for row, (hidden, (part, index)) in enumerate(zip(np.asarray(run(frozen, batch)), chosen)):
        first, count = self._starts[part][index], lengths[order[start + row]]
        self._hidden[first : first + count] = hidden[:count]
      if start // size % 20 == 19 or start + size >= len(order):
        self._hidden.flush()
        mark["done"] = min(start + size, len(order))
        workdirs.write_atomically(state, json.dumps(mark) + "\n")
        note(f"frozen blocks: {mark['done']} of {len(order)} pairs")


def _reserve(path: pathlib.Path, size: int) -> None:
  """Makes a file whose bytes all have their place on the disk: a full one ends the process where a mapped page is written."""
  try:
    with open(path, "wb") as file:
      file.truncate(size)
      if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    path.unlink(missing_ok=True)
    raise InputError(
      f"{path} takes {size / 1e9:.2f} GB, and there is no room ({error.strerror}); free space there, or set"
      " reward_model.cache to False"
    ) from error
