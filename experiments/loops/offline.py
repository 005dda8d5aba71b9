"""The offline loop: the policy moves on pairs, the multipliers on what is measured on fresh samples in between."""

import contextlib
import functools
import pathlib
import time

import jax
import numpy as np

from experiments import builders
from experiments import compilations
from experiments import constrained
from experiments import offline_builders
from experiments.loops import pairs
from experiments.loops import profiling
from experiments.loops import runs
from experiments.loops import sampling
from experiments.loops import saving
from experiments.loops import wandb_log
from qempo_jax import duals
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import prompts
from qempo_jax.errors import InputError
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import offline_step
from qempo_jax.train.online_step import GroupBatch


def check(config, policy: builders.Policy) -> str:
  """Checks config, pairs and floor before training; returns a line for the user.

  Raises:
    InputError: the config, a pair or the reward function is wrong, or the floor is out of reach.
  """
  objective = offline_builders.objective(config)
  offline_builders.pairs_per_row(config, policy.mesh)
  found = pairs.load(config, policy, workdir=None)
  line, rows = "Pairs are sampled from the reference", None
  if found:
    encoded = pairs.encode(config, policy, found)
    rows = preferences.prompt_rows(encoded.rows)
    line = f"{len(encoded.rows)} pairs of {len(rows)} prompts ({encoded.dropped} pairs too long)"
  if not config.offline.measure_every:
    return f"{line}; the reward is not measured, so no floor is enforced"
  measure = Measurement(config, policy, rows or builders.training_rows(config, policy.tokenizer))
  rewards = measure(policy.params, 0, jax.random.key(config.evaluation.seed))[0].rewards["reward"]
  aim = constrained.bound(config, "quality", aim=True)
  if aim is not None:
    duals.resolve_floor(aim, rewards, max_reward=config.reward.max)
  line += f"; reference policy: reward {rewards.mean():.3f}, {rewards.max(axis=1).mean():.3f} for the best of"
  line += f" {rewards.shape[1]}"
  if aim is not None and objective.weights is not None:
    line += "; weights are fixed: the floor is measured, not enforced"
  return line


def train(config, workdir: pathlib.Path, policy: builders.Policy, display):
  """Trains on pairs from the reference policy, or from the newest checkpoint, and writes `metrics.jsonl`.

  Args:
    config: a complete config.
    workdir: where metrics and checkpoints go.
    policy: the reference, which is also the start.
    display: gets every step's metrics.

  Returns:
    The last TrainState.
  """
  # 1. Pairs, and what the reference makes of them.
  objective = offline_builders.objective(config)
  reference = policy._replace(params=sharding.fetched(policy.params))
  found = pairs.load(config, reference, workdir)
  encoded = pairs.encode(config, reference, found)
  if encoded.ended:
    display.note(f"{encoded.ended} pairs left out: a response holds the token that ends it before its end")
  if encoded.forbidden:
    display.note(f"{encoded.forbidden} pairs left out: special tokens in a response (sampling.allowed_tokens)")
  if encoded.dropped or encoded.seams:
    display.note(f"{encoded.dropped} pairs too long, left out; {encoded.seams} responses merge with their prompt")
  batches = pairs.Batches(config, reference, encoded)
  del reference
  every, aim = config.offline.measure_every, constrained.bound(config, "quality", aim=True)
  measure = Measurement(config, policy, preferences.prompt_rows(encoded.rows)) if every else None

  # 2. The state and its two compiled steps.
  optimizers, state, shardings = runs.initial(config, policy)
  if warning := builders.precision_note(config, state.params):
    display.note(warning)
  step = compile_step(config, policy, objective, optimizers, shardings)
  dual_step = compile_dual_step(config, policy, objective, optimizers, shardings)
  as_policy = builders.as_policy(config)
  frozen = policy.params if builders.lora_config(config) else None

  # 3. Where an earlier run stopped.
  same = {"pairs": encoded.fingerprint()}
  saver = saving.Saver(config, workdir, policy, display.note, same=same, order=batches.order)
  state, _ = saver.restore(state)
  first = int(state.step)
  log = wandb_log.also(config, runs.MetricsLog(workdir / "metrics.jsonl", keep=first))

  def made_ready(index):
    batch = batches(index)
    return batch, sharding.place(batch, runs.split(policy.mesh, config.offline.pairs_per_step))

  # 4. The loop: a measurement moves the multipliers, then pairs move the policy.
  shown, warned, ready = {}, False, None
  with saver, contextlib.closing(log), compilations.Counter() as compiled:
    for index in profiling.traced(range(first, config.steps), config, workdir, display.note):
      started = time.monotonic()
      measured, truncation = {}, {}
      if every and index % every == 0:
        current = as_policy(state.params, policy.params)
        groups, stats, cut = measure(current, index // every, jax.random.fold_in(state.rng, index))
        placed = sharding.place((groups, stats), runs.split(policy.mesh, config.data.prompts_per_step))
        state, measured = dual_step(state, policy.params, *placed)
        truncation = {"truncation": cut}
      sampled = time.monotonic()
      batch, placed = ready or made_ready(index)
      state, metrics = step(state, placed, frozen)
      ready = made_ready(index + 1) if index + 1 < config.steps else None  # while the devices are at this step
      metrics = {name: float(value) for name, value in jax.device_get(measured | metrics).items()}
      seconds = time.monotonic() - started
      metrics |= truncation | {
        "step": index + 1,
        "floor": aim,
        "seconds": seconds,
        "sampling_seconds": sampled - started,
        "compilations": compiled.take(),
        "tokens_per_second": int(batch.mask.sum()) / seconds,
        "padding": pair_tokens.padding_share(batch.packed),
      }
      metrics |= saver.count(metrics)
      log.write(metrics)
      shown |= metrics  # between measurements the display keeps the last one; the log does not
      display.step(index + 1, shown)
      _check(metrics, config)
      if not warned and metrics.get("chosen_change", 0.0) < -config.offline.chosen_fall:
        warned = True
        display.note(
          f"step {index + 1}: the chosen responses' log-prob fell by {-metrics['chosen_change']:.1f} nats from the"
          " reference; set offline.nll_weight, or lower the learning rate"
        )
      saver.after_step(state, log)
  return state


class Measurement:
  """Fresh, scored samples of a policy on the training prompts."""

  def __init__(self, config, policy: builders.Policy, rows):
    """Prepares for these rows."""
    self._config = config
    self._sample, self._reward = sampling.GroupSampler(policy, config, rows), builders.reward(config)

  def __call__(self, params, count: int, rng) -> tuple[GroupBatch, TokenStats, float]:
    """The groups of the count-th measurement, their log-probs and entropies, and the share that was cut."""
    config, rows = self._config, self._sample.rows
    chosen = prompts.batch_indices(count, config.data.prompts_per_step, len(rows), config.seed)
    samples = self._sample(params, [rows[i] for i in chosen], rng, config.sampling.group_size)
    rewards = sampling.group_rewards(self._reward, samples)
    packed = packing.pack_groups(samples.prompts, samples.responses, bucket=config.compute.bucket)
    rollout, fresh = samples.rollout, np.ones(rewards.shape, bool)
    groups = GroupBatch(packed, rollout.mask, {"reward": rewards}, fresh, ~fresh)
    stats = TokenStats(rollout.log_probs, rollout.entropies)
    return groups, stats, float(np.mean(rollout.truncated))


def compile_step(config, policy: builders.Policy, objective, optimizers, shardings):
  """The jitted policy step: state placed by its shardings and donated.

  It takes (state, batch, the reference's parameters where adapters are trained beside them, else None).
  """
  step = functools.partial(
    offline_step.offline_step,
    objective=objective,
    optimizer=optimizers.policy,
    as_policy=builders.as_policy(config),
    micro_batches=builders.micro_batches(config, config.offline.pairs_per_step, policy.mesh),
    **_scoring(config, policy),
  )
  frozen = jax.tree.map(lambda leaf: leaf.sharding, policy.params) if builders.lora_config(config) else None
  return jax.jit(
    sharding.on_mesh(step, policy.mesh),
    in_shardings=(shardings, runs.split(policy.mesh, config.offline.pairs_per_step), frozen),
    out_shardings=(shardings, sharding.replicated(policy.mesh)),
    donate_argnums=0,
  )


def compile_dual_step(config, policy: builders.Policy, objective, optimizers, shardings):
  """The jitted dual step, likewise; the policy passes through it."""
  step = functools.partial(
    offline_step.dual_step, objective=objective, optimizer=optimizers.dual, **_scoring(config, policy)
  )
  reference = jax.tree.map(lambda leaf: leaf.sharding, policy.params)
  split = runs.split(policy.mesh, config.data.prompts_per_step)
  return jax.jit(
    sharding.on_mesh(runs.reading_reference(step, reference), policy.mesh),
    in_shardings=(shardings, reference, split, split),
    out_shardings=(shardings, sharding.replicated(policy.mesh)),
    donate_argnums=0,
  )


def _scoring(config, policy):
  settings = {"temperature": config.sampling.temperature, "chunk_size": config.compute.chunk_size}
  return settings | {"config": policy.config}


def _check(metrics, config) -> None:
  """Stops a run that has gone wrong, with what to do about it."""
  bound = config.alarms.max_entropy_per_token
  if metrics.get("entropy_per_token", 0.0) > bound:
    raise InputError(
      f"step {metrics['step']}: entropy per token is {metrics['entropy_per_token']:.2f} nats, above"
      f" alarms.max_entropy_per_token={bound}; lower offline.alpha, raise constraints.quality.start or its gains,"
      " or set constraints.kl.bound"
    )
