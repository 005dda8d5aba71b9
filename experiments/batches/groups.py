"""Batches of online training: groups of samples with their rewards, and replayed responses beside them."""

from collections.abc import Iterator
import functools
import time
from typing import Any

import jax
import numpy as np

from experiments.batches.base import Batches
from experiments.batches.draws import Draws
from experiments.plan import Plan
from experiments.plan import reading_reference
from experiments.samples import Samples
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data import columns
from qempo_jax.errors import InputError
from qempo_jax.evaluation import functional
from qempo_jax.sampling.replay import ReplayBuffer
from qempo_jax.train import online_step


class Groups(Batches):
  """The online update of every step; a context manager that ends the thread of its rewards."""

  def __init__(
    self, plan: Plan, draws: Draws, replay: "Replay", *, max_reward: float | None, acceptable: float | None = None
  ):
    """Prepares; nothing is sampled yet.

    Args:
      plan: the run's computation.
      draws: scored samples by the index of their update.
      replay: the replayed responses.
      max_reward: the largest possible reward; None if unknown.
      acceptable: threshold of the coherence constraint, whose acceptable responses are watched for a collapse; None
        for none.
    """
    self._plan, self._draws, self._replay, self._max_reward = plan, draws, replay, max_reward
    self._acceptable, self._watch = acceptable, Collapse()
    self.same, self.order = {"prompts": columns.fingerprint(draws.sample.rows)}, draws.order
    self.notes = []
    self._judged, self._said = np.zeros(2), False  # steps, sum of their unjudged shares
    if dropped := draws.sample.dropped:
      limit, loud = plan.sampling.max_prompt_length, "WARNING: " * (dropped > len(draws.sample.rows) / 9)
      self.notes.append(f"{loud}{dropped} prompts longer than {limit} tokens left out")
    self._step = None

  def compile(self, shardings) -> None:
    """Sets up the one jitted step; it is compiled at the first batch."""
    self._step = compile_step(self._plan, shardings)

  def __call__(self, state, index: int) -> tuple[Any, dict[str, jax.Array], dict[str, float]]:
    """Update `index`, from 0: (the next state, metrics on the devices, metrics of the host)."""
    plan, params = self._plan, self._plan.policy.params
    jax.block_until_ready(state.step)  # so that `sampling_seconds` leaves the update before it out
    started = time.monotonic()
    samples, rewards, counts = self._draws(index, plan.as_policy(state.params, params), state.rng)
    seconds = time.monotonic() - started
    batch = self._replay.make_batch(samples, rewards, np.random.default_rng([plan.seed, index]))
    batch = sharding.place(batch, sharding.rows_sharding(plan.policy.mesh, plan.sampling.prompts))
    state, metrics = self._step(state, params, batch)
    host = {
      "truncation": float(np.mean(samples.rollout.truncated)),
      "unscored": float(np.mean(np.isnan(rewards["reward"]))),
      "found": self._replay.buffer.total,
      "sampling_seconds": seconds,
      "tokens": int(samples.rollout.mask.sum()),
    }
    if plan.sampling.function:
      host["sampling/left_out"] = float(np.mean(~samples.rollout.mask.any(axis=-1)))
    else:
      host["sampling/utilisation"] = float(samples.rollout.utilisation)
    if self._acceptable is not None:
      log_probs = np.asarray(samples.rollout.log_probs, np.float64).sum(axis=-1)
      entropies = functional.acceptable_entropy(log_probs, rewards["reward"] >= self._acceptable)
      if np.isfinite(entropies).any():
        host["acceptable/effective"] = float(np.exp(np.nanmean(entropies)))
    return state, metrics, host | {f"reward_counts/{kind}": count for kind, count in counts.items()}

  def remarks(self, metrics: dict[str, float]) -> Iterator[str]:
    """Lines for the user about a step's metrics: a multiplier that leaves entropy no say, or a collapse.

    Between two good responses the gradient favours the likelier one by lambda (max r - E[r]), and entropy the rarer one by the
    spread of their log-probs, which is 2 to 3 nats.
    """
    yield from self._watch(metrics)
    self._judged += [1, metrics.get("unscored", 0.0)]
    if not self._said and self._judged[1] > 0.01 * self._judged[0]:
      self._said = True
      yield (
        f"step {metrics['step']}: {self._judged[1] / self._judged[0]:.1%} of responses could not be judged; they count as the"
        " least reward in constraints: look at them, raise the reward's time-out, or set reward.unscored so that a floor can be met"
      )
    steps, multiplier = self._plan.steps, metrics["dual/quality/multiplier"]
    known = self._max_reward is not None and self._plan.objective.method.entropy_weight
    if not known or steps < 20 or metrics["step"] != steps // 4:
      return
    nats = multiplier * (self._max_reward - metrics["reward"])
    if nats > 2:
      yield (
        f"step {metrics['step']}: entropy is not acting yet: the quality multiplier {multiplier:.1f} times the"
        f" missing reward is {nats:.1f} nats, above 2; start it lower, train longer, or lower the floor"
      )

  def to_json(self) -> dict[str, Any]:
    """Samples drawn ahead, replayed responses, and the reward function's own state."""
    ahead = self._draws.to_json()  # first: its rewards may still change what the reward function remembers
    reward = self._draws.reward
    own = reward.to_json() if hasattr(reward, "to_json") else {}
    return {"ahead": ahead, "replay": self._replay.buffer.to_json(), "reward": own}

  def from_json(self, saved: dict[str, Any]) -> None:
    """Restores `to_json`."""
    self._draws.from_json(saved.get("ahead", {}))  # older checkpoints have none
    self._replay.buffer.from_json(saved["replay"])
    if hasattr(self._draws.reward, "from_json"):
      self._draws.reward.from_json(saved["reward"])

  def __enter__(self):
    self._draws.__enter__()
    return self

  def __exit__(self, *exception) -> None:
    self._draws.__exit__(*exception)


class Collapse:
  """The alarm of a collapse among acceptable responses: exp H(Y | acceptable), averaged over steps, is nearly gone."""

  def __init__(self):
    """Has seen nothing yet."""
    self._mean = self._most = 0.0
    self._said = False

  def __call__(self, metrics: dict[str, float]) -> Iterator[str]:
    """A line where the average falls below 2 and below half of the largest so far; again only after a recovery."""
    now = metrics.get("acceptable/effective")
    if now is None:
      return
    self._mean = 0.9 * self._mean + 0.1 * now if self._most else now
    self._most = max(self._most, self._mean)
    gone = self._mean < 2 and self._mean < 0.5 * self._most
    if gone and not self._said:
      yield (
        f"step {metrics['step']}: collapse: {self._mean:.1f} effective acceptable responses a prompt are left of"
        f" {self._most:.1f}; start constraints.quality lower, or lower its gain or its bound"
      )
    self._said = gone


def compile_step(plan: Plan, shardings):
  """The one jitted step of a run: state placed by its shardings and donated."""
  policy, settings = plan.policy, plan.sampling
  step = functools.partial(
    online_step.online_step,
    config=policy.config,
    objective=plan.objective,
    optimizers=plan.optimizers,
    temperature=settings.temperature,
    chunk_size=settings.chunk_size,
    transform=settings.transform,
    as_policy=plan.as_policy,
    micro_batches=plan.micro_batches,
  )
  reference = jax.tree.map(lambda leaf: leaf.sharding, policy.params)
  return jax.jit(
    sharding.on_mesh(reading_reference(step, reference), policy.mesh),
    in_shardings=(shardings, reference, sharding.rows_sharding(policy.mesh, settings.prompts)),
    out_shardings=(shardings, sharding.replicated(policy.mesh)),
    donate_argnums=0,
  )


class Replay:
  """Puts replayed responses beside the fresh ones of each group."""

  def __init__(self, plan: Plan, *, min_reward: float, key: str, capacity: int, rows):
    """Starts with an empty buffer.

    Args:
      plan: the run's computation.
      min_reward: least reward of a response that is kept.
      capacity: most responses kept, over all prompts.
      key: column whose value shares its finds; "" for the whole row.
      rows: the prompts.

    Raises:
      InputError: finds are kept by a column that a row does not have.
    """
    self._plan, self._column = plan, key
    self.buffer = ReplayBuffer(min_reward, plan.policy.config.forbidden, capacity=capacity)
    if plan.replay_size and key and (lacking := [row for row in rows if key not in row]):
      raise InputError(
        f"replay.key={key!r} is no column of {len(lacking)} prompts, the first with {', '.join(lacking[0])}; set it to"
        " prompt, to an empty text for the whole row, or replay.size to 0"
      )

  def _key(self, row):
    return row.get(self._column) if self._column else columns.whole_row(row)

  def make_batch(self, samples: Samples, rewards: dict[str, np.ndarray], rng) -> online_step.GroupBatch:
    """Packs the fresh samples with replayed ones, then remembers the fresh ones that are good.

    A response without a score (NaN) or without a token is neither fresh nor replayed: it moves no policy. One without a score
    counts where constraints are measured.
    """
    main, replay_size = rewards["reward"], self._plan.replay_size
    fresh_size = main.shape[1]
    shape = (len(samples.rows), fresh_size + replay_size)
    all_rewards, replayed = {name: np.full(shape, np.nan, np.float32) for name in rewards}, np.zeros(shape, bool)
    for name, values in rewards.items():
      all_rewards[name][:, :fresh_size] = values
    mask = np.zeros((*shape, self._plan.sampling.max_response_length), bool)
    tokens = np.zeros(mask.shape, np.int32)
    groups = []
    for row, responses in enumerate(samples.responses):
      key = self._key(samples.rows[row])
      drawn = self.buffer.draw(key, replay_size, rng)
      for slot, (_, value) in enumerate(drawn, start=fresh_size):
        all_rewards["reward"][row, slot], replayed[row, slot] = value, True
      empty = [()] * (replay_size - len(drawn))
      groups.append([*responses, *(response for response, _ in drawn), *empty])
      for slot, response in enumerate(groups[-1]):
        mask[row, slot, : len(response)], tokens[row, slot, : len(response)] = True, response
      for response, value, truncated in zip(responses, main[row], samples.rollout.truncated[row]):
        if replay_size and not truncated and np.isfinite(value):
          self.buffer.add(key, response, value)
    fresh = np.zeros(shape, bool)
    fresh[:, :fresh_size] = np.isfinite(main) & mask[:, :fresh_size].any(axis=-1)
    packed = packing.pack_groups(samples.prompts, groups, bucket=self._plan.sampling.bucket)
    features, behaviour = self._plan.objective.method.features(tokens, mask), None
    if self._plan.stale_steps or self._plan.sampling.function:
      behaviour = np.zeros(shape, np.float32)
      behaviour[:, :fresh_size] = samples.rollout.log_probs.sum(axis=-1)
    unscored = np.zeros(shape, bool)
    unscored[:, :fresh_size] = ~np.isfinite(main)
    return online_step.GroupBatch(packed, mask, all_rewards, fresh, replayed, features, behaviour, unscored)
