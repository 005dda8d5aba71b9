"""The samples of every update with their rewards: drawn when they are asked for, or before the last update.

With `sampling.stale_steps=1` the samples of update t+1 are drawn before update t, and scored while it runs on the
devices: by one thread, which also waits for rewards that have processes of their own. Rewards in pure Python hold the
interpreter while they run, and so stop what the loop does in Python, not what the devices do.
"""

import base64
from concurrent import futures
import io
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from experiments import samples as sampling
from qempo_jax.types import Rollout

_REWARD = "rewards/"  # before a reward's name in the saved arrays


class Scored(NamedTuple):
  """Samples and what they are worth.

  Attributes:
    samples: of one update.
    rewards: [P, G] by name, NaN where not scored.
    counts: what the reward function counted meanwhile, by kind.
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
    self._ahead: tuple[int, futures.Future] | None = None

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
      return self._score(self._draw(index, params, rng))
    own = self._ahead[1] if self._ahead else self._submit(index, params, rng)
    self._ahead = None
    if index + 1 < self._steps:
      self._ahead = index + 1, self._submit(index + 1, params, rng)
    return own.result()

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    if self._thread is not None:
      self._thread.shutdown(cancel_futures=True)

  def to_json(self) -> dict[str, Any]:
    """Samples drawn ahead, once they are scored; a resumed run no longer has the policy that drew them."""
    if self._ahead is None:
      return {}
    index, found = self._ahead[0], self._ahead[1].result()
    arrays = found.samples.rollout.__dict__ | {f"{_REWARD}{name}": values for name, values in found.rewards.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return {"index": index, "arrays": base64.b64encode(file.getvalue()).decode(), "counts": found.counts}

  def from_json(self, saved: dict[str, Any]) -> None:
    """Goes on from `to_json`."""
    if not saved:
      return
    with np.load(io.BytesIO(base64.b64decode(saved["arrays"]))) as file:
      arrays = dict(file)
    rewards = {name.removeprefix(_REWARD): arrays.pop(name) for name in list(arrays) if name.startswith(_REWARD)}
    samples = self.sample.of_rollout(self._rows(saved["index"]), Rollout(**arrays))
    done = futures.Future()
    done.set_result(Scored(samples, rewards, saved["counts"]))
    self._ahead = saved["index"], done

  def _submit(self, index, params, rng) -> futures.Future:
    return self._thread.submit(self._score, self._draw(index, params, rng))

  def _draw(self, index, params, rng) -> sampling.Samples:
    return self.sample(params, self._rows(index), jax.random.fold_in(rng, index), self._group_size)

  def _rows(self, index):
    return [self.sample.rows[i] for i in self.order.batch(index)]

  def _score(self, samples) -> Scored:
    rewards = sampling.group_scores(self.reward, samples)
    counts = self.reward.take_counts() if hasattr(self.reward, "take_counts") else {}
    return Scored(samples, rewards, counts)
