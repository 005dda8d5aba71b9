"""The samples of every update with their rewards: drawn when they are asked for, or before the last update.

With `sampling.stale_steps=1` the samples of update t+1 are drawn before update t, and scored while it runs on the
devices: by one thread, which also waits for rewards that have processes of their own. Rewards in pure Python hold the
interpreter while they run, and so stop what the loop does in Python, not what the devices do.

Of several processes the first alone scores, and its rewards are everyone's: a time-out there cannot make processes differ.
"""

from concurrent import futures
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from experiments import samples as sampling
from experiments.run import distributed
from qempo_jax.sampling import replay
from qempo_jax.types import Rollout

_REWARD = "rewards/"  # before a reward's name in the saved arrays


class Scored(NamedTuple):
  """Samples and their rewards.

  Attributes:
    samples: of one update.
    rewards: [P, G] by name, NaN where not scored.
    counts: the reward function's own counts meanwhile, by kind.
  """

  samples: sampling.Samples
  rewards: dict[str, np.ndarray]
  counts: dict[str, int]


class Draws:
  """Scored samples by the index of their update; a context manager that ends its thread."""

  def __init__(self, sample: sampling.GroupSampler, reward, order, *, group_size: int, steps: int, ahead: bool):
    """Draws nothing yet.

    Args:
      sample: of the run's rows.
      reward: the reward function.
      order: of the rows.
      group_size: samples a prompt.
      steps: parameter updates of the run.
      ahead: draw the samples of update t+1 before update t.
    """
    self.sample, self.reward, self.order = sample, reward, order
    self._group_size, self._steps = group_size, steps
    self._thread = futures.ThreadPoolExecutor(1, "rewards") if ahead else None
    self._ahead: _Ahead | None = None

  def __call__(self, index: int, params, rng) -> Scored:
    """The samples that update `index` learns from.

    Args:
      index: of the update, from 0.
      params: of the policy before it. With `stale_steps=1` those of the next update are drawn from these.
      rng: the run's key.

    Raises:
      InputError: the reward function failed.
    """
    if self._thread is None:
      samples = self._draw(index, params, rng)
      return Scored(samples, *distributed.from_first(lambda: self._verdicts(samples)))
    own, self._ahead = self._ahead or self._submit(index, params, rng), None
    if index + 1 < self._steps:
      self._ahead = self._submit(index + 1, params, rng)
    return own.scored()

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    if self._thread is not None:
      self._thread.shutdown(cancel_futures=True)

  def to_json(self) -> dict[str, Any]:
    """Samples drawn ahead, once they are scored; a resumed run no longer has the policy that drew them."""
    if self._ahead is None:
      return {}
    index, found = self._ahead.index, self._ahead.scored()
    arrays = found.samples.rollout.__dict__ | {f"{_REWARD}{name}": values for name, values in found.rewards.items()}
    return {"index": index, "arrays": replay.packed(arrays), "counts": found.counts}

  def from_json(self, saved: dict[str, Any]) -> None:
    """Goes on from `to_json`."""
    if not saved:
      return
    arrays = replay.unpacked(saved["arrays"])
    rewards = {name.removeprefix(_REWARD): arrays.pop(name) for name in list(arrays) if name.startswith(_REWARD)}
    samples = self.sample.of_rollout(self._rows(saved["index"]), Rollout(**arrays))
    done = futures.Future()
    done.set_result((rewards, saved["counts"]))
    self._ahead = _Ahead(saved["index"], samples, done)

  def _submit(self, index, params, rng) -> "_Ahead":
    samples = self._draw(index, params, rng)
    return _Ahead(index, samples, self._thread.submit(self._verdicts, samples) if distributed.is_writer() else None)

  def _draw(self, index, params, rng) -> sampling.Samples:
    return self.sample(params, self._rows(index), jax.random.fold_in(rng, index), self._group_size)

  def _rows(self, index):
    return [self.sample.rows[i] for i in self.order.batch(index)]

  def _verdicts(self, samples) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    rewards = sampling.group_scores(self.reward, samples)
    return rewards, self.reward.take_counts() if hasattr(self.reward, "take_counts") else {}


class _Ahead(NamedTuple):
  """Samples of an update, whose scoring may still run.

  Attributes:
    index: of the update.
    samples: of all its rows.
    verdicts: (rewards, counts), on the first process; unused on others.
  """

  index: int
  samples: sampling.Samples
  verdicts: futures.Future | None

  def scored(self) -> Scored:
    """The samples with their rewards, once these are known; to be called by all processes."""
    return Scored(self.samples, *distributed.from_first(lambda: self.verdicts.result()))
