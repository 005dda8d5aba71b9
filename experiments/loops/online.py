"""The online loop: sample groups, score them, move policy and multipliers together."""

import contextlib
import functools
import pathlib
import time

import jax
import numpy as np

from experiments import builders
from experiments import compilations
from experiments import constrained
from experiments.loops import draws
from experiments.loops import profiling
from experiments.loops import runs
from experiments.loops import sampling
from experiments.loops import saving
from experiments.loops import wandb_log
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data import columns
from qempo_jax.data import order as orders
from qempo_jax.errors import InputError
from qempo_jax.sampling.replay import ReplayBuffer
from qempo_jax.train import online_step


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
  sample = sampling.GroupSampler(policy, config, builders.training_rows(config, policy.tokenizer))
  reward = builders.reward(config)
  replay = Replay(config, policy.config.forbidden)
  replay.check(sample.rows)
  if sample.dropped:
    display.note(f"{sample.dropped} prompts longer than {config.data.max_prompt_length} tokens left out")

  # 2. The state and its one compiled step.
  optimizers, state, shardings = runs.initial(config, policy)
  if warning := builders.precision_note(config, state.params):
    display.note(warning)
  as_policy, aim = builders.as_policy(config), constrained.bound(config, "quality", aim=True)
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
      samples, rewards, counts = drawn(index, as_policy(state.params, policy.params), state.rng)
      sampled = time.monotonic()
      batch = replay.make_batch(samples, rewards, np.random.default_rng([config.seed, index]))
      batch = sharding.place(batch, runs.split(policy.mesh, config.data.prompts_per_step))
      state, metrics = step(state, policy.params, batch)
      metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      seconds = time.monotonic() - started
      metrics |= {
        "step": index + 1,
        "floor": aim,
        "truncation": float(np.mean(samples.rollout.truncated)),
        "sampling/utilisation": float(samples.rollout.utilisation),
        "unscored": float(np.mean(np.isnan(rewards["reward"]))),
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
      if config.steps >= 20 and index + 1 == config.steps // 4 and (warning := _not_acting(metrics, config)):
        display.note(warning)
      saver.after_step(state, log, remember)
  return state


def compile_step(config, policy: builders.Policy, optimizers, shardings):
  """The one jitted step of a run: state placed by its shardings and donated."""
  step = functools.partial(
    online_step.online_step,
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

  def __init__(self, config, forbidden=()):
    """Reads the sizes from the config; `forbidden` are ids that the policy never samples."""
    self._config, self._features = config, constrained.method(config).features
    self.buffer = ReplayBuffer(config.replay.min_reward, forbidden)

  def check(self, rows) -> None:
    """Raises InputError where finds are kept by a column that a row does not have."""
    r = self._config.replay
    if r.size and r.key and (lacking := [row for row in rows if r.key not in row]):
      raise InputError(
        f"replay.key={r.key!r} is no column of {len(lacking)} prompts, the first with {', '.join(lacking[0])}; set it to"
        " prompt, to an empty text for the whole row, or replay.size to 0"
      )

  def _key(self, row):
    """What shares its finds: the column that the config names, else the whole row."""
    key = self._config.replay.key
    return row.get(key) if key else columns.whole_row(row)

  def make_batch(self, samples: sampling.Samples, rewards: dict[str, np.ndarray], rng) -> online_step.GroupBatch:
    """Packs the fresh samples with replayed ones, then remembers the fresh ones that are good.

    What was not scored (NaN) is neither fresh nor replayed: it is left out of its group.
    """
    main, replay_size = rewards["reward"], self._config.replay.size
    fresh_size = main.shape[1]
    shape = (len(samples.rows), fresh_size + replay_size)
    all_rewards, replayed = {name: np.full(shape, np.nan, np.float32) for name in rewards}, np.zeros(shape, bool)
    for name, values in rewards.items():
      all_rewards[name][:, :fresh_size] = values
    mask = np.zeros((*shape, self._config.sampling.max_response_length), bool)
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
    fresh[:, :fresh_size] = np.isfinite(main)
    packed = packing.pack_groups(samples.prompts, groups, bucket=self._config.compute.bucket)
    behaviour = None
    if self._config.sampling.stale_steps:
      behaviour = np.zeros(shape, np.float32)
      behaviour[:, :fresh_size] = samples.rollout.log_probs.sum(axis=-1)
    return online_step.GroupBatch(packed, mask, all_rewards, fresh, replayed, self._features(tokens, mask), behaviour)


def _not_acting(metrics, config) -> str | None:
  """Says where the quality multiplier outweighs entropy among good responses: lambda (max r - E[r]) above 2 nats.

  Between two good responses the gradient favours the likelier one by lambda (max r - E[r]), and entropy the rarer one by the
  spread of their log-probs, which is 2 to 3 nats.
  """
  if config.reward.max is None or not constrained.method(config).entropy_weight:
    return None
  nats = metrics["dual/quality/multiplier"] * (config.reward.max - metrics["reward"])
  if not nats > 2:
    return None
  return (
    f"step {metrics['step']}: entropy is not acting yet: the quality multiplier {metrics['dual/quality/multiplier']:.1f} times the"
    f" missing reward is {nats:.1f} nats, above 2; start it lower, train longer, or lower the floor"
  )


def _check(metrics, config) -> None:
  """Stops a run that has gone wrong, with what to do about it."""
  bound = config.alarms.max_entropy_per_token
  if metrics["entropy_per_token"] > bound:
    raise InputError(
      f"step {metrics['step']}: entropy per token is {metrics['entropy_per_token']:.2f} nats, above"
      f" alarms.max_entropy_per_token={bound}; raise constraints.quality.start or its gains, or set constraints.kl.bound"
    )
