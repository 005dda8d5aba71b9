"""The online loop: sample groups, score them, move policy and multipliers together."""

import functools
import pathlib
import time

import jax
import numpy as np

from experiments import builders
from experiments.loops import runs
from experiments.loops import sampling
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax import train_step
from qempo_jax.data import prompts
from qempo_jax.errors import InputError
from qempo_jax.sampling.replay import ReplayBuffer


def train(config, workdir: pathlib.Path, policy: builders.Policy, display):
  """Trains from the reference policy, or from the newest checkpoint, and writes `metrics.jsonl`.

  Args:
    config: a complete config.
    workdir: where metrics and checkpoints go.
    policy: the reference, which is also the start.
    display: gets every step's metrics.

  Returns:
    The last TrainState.
  """
  # 1. Data and rewards.
  sample = sampling.GroupSampler(policy, config, builders.training_rows(config))
  reward = builders.reward(config)
  replay = Replay(config)
  if sample.dropped:
    display.note(f"{sample.dropped} prompts longer than {config.data.max_prompt_length} tokens left out")

  # 2. The state and its one compiled step.
  optimizers, state, shardings = runs.initial(config, policy)
  step = compile_step(config, policy, optimizers, shardings)

  # 3. Where an earlier run stopped.
  checkpoints = runs.checkpoints(config, workdir)
  if checkpoints and (found := checkpoints.restore(state)):
    state, host = found
    replay.buffer.from_json(host["replay"])
    display.note(f"resumed after step {int(state.step)}")
  first = int(state.step)
  log = runs.MetricsLog(workdir / "metrics.jsonl", keep=first)

  # 4. The loop.
  for index in range(first, config.steps):
    started = time.monotonic()
    chosen = prompts.batch_indices(index, config.data.prompts_per_step, len(sample.rows), config.seed)
    rng = jax.random.fold_in(state.rng, index)
    samples = sample(state.params, [sample.rows[i] for i in chosen], rng, config.sampling.group_size)
    rewards = sampling.group_rewards(reward, samples)
    sampled = time.monotonic()
    batch = replay.make_batch(samples, rewards, np.random.default_rng([config.seed, index]))
    state, metrics = step(state, policy.params, batch)
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    seconds = time.monotonic() - started
    metrics |= {
        "step": index + 1,
        "floor": builders.objective(config).min_reward,
        "truncation": float(np.mean(samples.rollout.truncated)),
        "found": replay.buffer.total,
        "seconds": seconds,
        "sampling_seconds": sampled - started,
        "tokens_per_second": int(samples.rollout.mask.sum()) / seconds,
    }
    log.write(metrics)
    display.step(index + 1, metrics)
    _check(metrics, config)
    every = config.checkpoint.every
    if checkpoints and (index + 1 == config.steps or (every and (index + 1) % every == 0)):
      checkpoints.save(state, {"replay": replay.buffer.to_json()})
  log.close()
  if checkpoints:
    checkpoints.close()
  return state


def compile_step(config, policy: builders.Policy, optimizers, shardings):
  """The one jitted step of a run: state placed by its shardings and donated."""
  step = functools.partial(
      train_step.online_step,
      config=policy.config,
      objective=builders.objective(config),
      optimizers=optimizers,
      temperature=config.sampling.temperature,
      chunk_size=config.compute.chunk_size,
  )
  reference = jax.tree.map(lambda leaf: leaf.sharding, policy.params)
  prompts_split = runs.split(policy.mesh, config.data.prompts_per_step)
  return jax.jit(
      step,
      in_shardings=(shardings, reference, prompts_split),
      out_shardings=(shardings, sharding.replicated(policy.mesh)),
      donate_argnums=0,
  )


class Replay:
  """Puts replayed responses beside the fresh ones of each group."""

  def __init__(self, config):
    """Reads the sizes from the config."""
    self._config = config
    self.buffer = ReplayBuffer(config.replay.min_reward)

  def make_batch(self, samples: sampling.Samples, rewards: np.ndarray, rng) -> train_step.GroupBatch:
    """Packs the fresh samples with replayed ones, then remembers the fresh ones that are good."""
    fresh_size, replay_size = rewards.shape[1], self._config.replay.size
    shape = (len(samples.rows), fresh_size + replay_size)
    all_rewards, replayed = np.zeros(shape, np.float32), np.zeros(shape, bool)
    all_rewards[:, :fresh_size] = rewards
    mask = np.zeros((*shape, self._config.sampling.max_response_length), bool)
    groups = []
    for row, responses in enumerate(samples.responses):
      key = samples.rows[row][self._config.replay.key]
      drawn = self.buffer.draw(key, replay_size, rng)
      for slot, (_, value) in enumerate(drawn, start=fresh_size):
        all_rewards[row, slot], replayed[row, slot] = value, True
      empty = [()] * (replay_size - len(drawn))
      groups.append([*responses, *(response for response, _ in drawn), *empty])
      for slot, response in enumerate(groups[-1]):
        mask[row, slot, : len(response)] = True
      for response, value, truncated in zip(responses, rewards[row], samples.rollout.truncated[row]):
        if replay_size and not truncated:
          self.buffer.add(key, response, value)
    fresh = np.zeros(shape, bool)
    fresh[:, :fresh_size] = True
    packed = packing.pack_groups(samples.prompts, groups, bucket=self._config.compute.bucket)
    return train_step.GroupBatch(packed, mask, all_rewards, fresh, replayed)


def _check(metrics, config) -> None:
  """Stops a run that has gone wrong, with what to do about it."""
  bound = config.alarms.max_entropy_per_token
  if metrics["entropy_per_token"] > bound:
    raise InputError(
        f"step {metrics['step']}: entropy per token is {metrics['entropy_per_token']:.2f} nats, above"
        f" alarms.max_entropy_per_token={bound}; raise duals.quality_multiplier or its gains, or set a KL budget"
    )
  if not np.isfinite(metrics["loss"]):
    raise InputError(f"step {metrics['step']}: the loss is not finite; lower optimizer.learning_rate")
