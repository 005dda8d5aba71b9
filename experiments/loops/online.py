"""The online loop: sample groups, score them, move policy and multipliers together."""

import contextlib
import functools
import pathlib
import time

import jax
import numpy as np

from experiments import builders
from experiments import compilations
from experiments.loops import draws
from experiments.loops import profiling
from experiments.loops import runs
from experiments.loops import sampling
from experiments.loops import saving
from experiments.loops import wandb_log
from qempo_jax import group_transforms
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax import train_step
from qempo_jax.data import order as orders
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
  replay.check(sample.rows)
  if sample.dropped:
    display.note(f"{sample.dropped} prompts longer than {config.data.max_prompt_length} tokens left out")

  # 2. The state and its one compiled step.
  optimizers, state, shardings = runs.initial(config, policy)
  if warning := builders.precision_note(config, state.params):
    display.note(warning)
  as_policy = builders.as_policy(config)
  step = compile_step(config, policy, optimizers, shardings)

  # 3. Where an earlier run stopped.
  order = orders.Order(len(sample.rows), batch_size=config.data.prompts_per_step, seed=config.seed)
  same = {"prompts": saving.fingerprint(sample.rows)}
  saver = saving.Saver(config, workdir, policy, display.note, same=same, order=order)
  drawn = draws.Draws(config, sample, reward, order)
  state, memory = saver.restore(state)
  if memory:
    drawn.from_json(memory.get("ahead", {}))  # older checkpoints have none
    replay.buffer.from_json(memory["replay"])
    if hasattr(reward, "from_json"):
      reward.from_json(memory["reward"])
  first = int(state.step)
  log = wandb_log.also(config, runs.MetricsLog(workdir / "metrics.jsonl", keep=first))

  def remember():
    ahead = drawn.to_json()  # first, since its rewards may still move what a reward remembers
    own = reward.to_json() if hasattr(reward, "to_json") else {}
    return {"ahead": ahead, "replay": replay.buffer.to_json(), "reward": own}

  # 4. The loop.
  with saver, drawn, contextlib.closing(log), compilations.Counter() as compiled:
    for index in profiling.traced(range(first, config.steps), config, workdir, display.note):
      started = time.monotonic()
      samples, rewards, floor_rewards, counts = drawn(index, as_policy(state.params, policy.params), state.rng)
      sampled = time.monotonic()
      batch = replay.make_batch(samples, rewards, np.random.default_rng([config.seed, index]), floor_rewards)
      batch = sharding.place(batch, runs.split(policy.mesh, config.data.prompts_per_step))
      state, metrics = step(state, policy.params, batch)
      metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      seconds = time.monotonic() - started
      metrics |= {
          "step": index + 1,
          "floor": builders.objective(config).min_reward,
          "truncation": float(np.mean(samples.rollout.truncated)),
          "sampling/utilisation": float(samples.rollout.utilisation),
          "unscored": float(np.mean(np.isnan(rewards))),
          "found": replay.buffer.total,
          "seconds": seconds,
          "sampling_seconds": sampled - started,
          "compilations": compiled.take(),
          "tokens_per_second": int(samples.rollout.mask.sum()) / seconds,
      }
      metrics |= saver.count(metrics)
      metrics |= {f"reward_counts/{kind}": count for kind, count in counts.items()}
      log.write(metrics)
      display.step(index + 1, metrics)
      _check(metrics, config)
      saver.after_step(state, log, remember)
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
      as_policy=builders.as_policy(config),
      micro_batches=builders.micro_batches(config, config.data.prompts_per_step, policy.mesh),
  )
  reference = jax.tree.map(lambda leaf: leaf.sharding, policy.params)
  prompts_split = runs.split(policy.mesh, config.data.prompts_per_step)
  return jax.jit(
      sharding.on_mesh(runs.reading_reference(step, reference), policy.mesh),
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

  def check(self, rows) -> None:
    """Raises InputError where finds are kept by a column that a row does not have."""
    r = self._config.replay
    if r.size and (lacking := [row for row in rows if r.key not in row]):
      raise InputError(
          f"replay.key={r.key!r} is no column of {len(lacking)} prompts, the first with {', '.join(lacking[0])}; set it to"
          " prompt, or replay.size to 0"
      )

  def make_batch(self, samples: sampling.Samples, rewards: np.ndarray, rng, floor_rewards=None) -> train_step.GroupBatch:
    """Packs the fresh samples with replayed ones, then remembers the fresh ones that are good.

    What was not scored (NaN) is neither fresh nor replayed: it is left out of its group.
    """
    fresh_size, replay_size = rewards.shape[1], self._config.replay.size
    shape = (len(samples.rows), fresh_size + replay_size)
    all_rewards, replayed = np.zeros(shape, np.float32), np.zeros(shape, bool)
    all_rewards[:, :fresh_size] = np.nan_to_num(rewards)
    mask = np.zeros((*shape, self._config.sampling.max_response_length), bool)
    groups = []
    for row, responses in enumerate(samples.responses):
      key = samples.rows[row].get(self._config.replay.key)
      drawn = self.buffer.draw(key, replay_size, rng)
      for slot, (_, value) in enumerate(drawn, start=fresh_size):
        all_rewards[row, slot], replayed[row, slot] = value, True
      empty = [()] * (replay_size - len(drawn))
      groups.append([*responses, *(response for response, _ in drawn), *empty])
      for slot, response in enumerate(groups[-1]):
        mask[row, slot, : len(response)] = True
      for response, value, truncated in zip(responses, rewards[row], samples.rollout.truncated[row]):
        if replay_size and not truncated and np.isfinite(value):
          self.buffer.add(key, response, value)
    fresh = np.zeros(shape, bool)
    fresh[:, :fresh_size] = np.isfinite(rewards)
    if floor_rewards is not None:
      absent = np.full((shape[0], replay_size, floor_rewards.shape[-1]), np.nan, np.float32)
      floor_rewards = np.concatenate([floor_rewards, absent], axis=1)
    packed = packing.pack_groups(samples.prompts, groups, bucket=self._config.compute.bucket)
    behaviour = None
    if self._config.sampling.stale_steps:
      behaviour = np.zeros(shape, np.float32)
      behaviour[:, :fresh_size] = samples.rollout.log_probs.sum(axis=-1)
    return train_step.GroupBatch(
        packed, mask, all_rewards, fresh, replayed, floor_rewards, self._similarities(groups, mask), behaviour
    )

  def _similarities(self, groups, mask: np.ndarray) -> np.ndarray | None:
    if self._config.objective.transform != "setpo":
      return None
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = [token for group in groups for response in group for token in response]
    return group_transforms.token_similarities(tokens, mask)


def _check(metrics, config) -> None:
  """Stops a run that has gone wrong, with what to do about it."""
  bound = config.alarms.max_entropy_per_token
  if metrics["entropy_per_token"] > bound:
    raise InputError(
        f"step {metrics['step']}: entropy per token is {metrics['entropy_per_token']:.2f} nats, above"
        f" alarms.max_entropy_per_token={bound}; raise duals.quality.initial or its gains, or set a KL budget"
    )
