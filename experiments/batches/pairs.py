"""Batches of offline training: pairs update the policy, measurements on fresh samples in between the multipliers."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from experiments import samples as sampling
from experiments.batches.base import Batches
from experiments.batches.pair_rows import PairRows
from experiments.plan import Plan
from experiments.plan import Sampling
from experiments.plan import reading_reference
from experiments.run import workdir as workdirs
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data import pair_tokens
from qempo_jax.data import prompts
from qempo_jax.data import reference_cache
from qempo_jax.data import scored
from qempo_jax.errors import InputError
from qempo_jax.models import demo_model
from qempo_jax.rewards import checked
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import offline_step
from qempo_jax.train.online_step import GroupBatch

SAMPLED_FILE = "sampled_pairs.jsonl"


class Pairs(Batches):
  """The offline update of every step, with a measurement before some of them."""

  def __init__(
    self,
    plan: Plan,
    pairs: "pair_tokens.PairTokens | Sampled",
    *,
    encode: Callable,
    measure: "Measurement | None",
    cached: bool,
    chosen_fall: float,
  ):
    """Prepares; nothing is scored or sampled yet.

    Args:
      plan: the run's computation.
      pairs: as token ids, or how to sample them.
      encode: pairs as text -> pairs as token ids.
      measure: measures the policy on the training prompts; None for never.
      cached: keep the reference's log-probs in the cache folder.
      chosen_fall: nats by which the chosen log-prob may fall from the reference's without a remark.
    """
    self._plan, self._pairs, self._encode, self._measure = plan, pairs, encode, measure
    self._cached, self._chosen_fall = cached, chosen_fall
    self._ready = None  # (index, batch, placed batch) of the next update
    self._warned = False
    self.notes = []

  def prepare(self, workdir: pathlib.Path, note: Callable[[str], None]) -> None:
    """Makes sampled pairs, and the reference's log-probs of all pairs that will be visited."""
    plan = self._plan
    reference = plan.policy._replace(params=sharding.fetched(plan.policy.params))
    if isinstance(self._pairs, Sampled):
      self._pairs = self._encode(self._pairs(reference, workdir / SAMPLED_FILE))
    pairs = self._pairs
    if pairs.ended:
      note(f"{pairs.ended} pairs left out: a response holds the token that ends it before its end")
    if pairs.forbidden:
      note(f"{pairs.forbidden} pairs left out: special tokens in a response (sampling.allowed_tokens)")
    if pairs.unrendered:
      note(
        f"{pairs.unrendered} responses are rendered otherwise by the chat template, as inspect_data shows; they are trained"
        " as they stand behind the prompt"
      )
    share = pairs.dropped / (len(pairs.rows) + pairs.dropped)
    if pairs.dropped or pairs.seams:
      loud = "WARNING: " if share > 0.1 else ""
      note(f"{loud}{pairs.dropped} pairs too long, left out; {pairs.seams} responses merge with their prompt")
    settings, s = plan.pairs, plan.sampling
    self._rows = PairRows(pairs, settings, seed=plan.seed, bucket=s.bucket, max_length=s.max_response_length)
    self._weights = pairs.weights()
    self._ref_log_probs = self._reference(reference) if settings.ref_log_probs else None
    self.same, self.order = {"pairs": pairs.fingerprint()}, self._rows.order

  def compile(self, shardings) -> None:
    """Sets up the two jitted steps; they are compiled at their first batches."""
    self._step, self._dual_step = compile_step(self._plan, shardings), compile_dual_step(self._plan, shardings)

  def __call__(self, state, index: int) -> tuple[Any, dict[str, jax.Array], dict[str, float]]:
    """Update `index`, from 0: (the next state, metrics on the devices, metrics of the host)."""
    plan, measured, host = self._plan, {}, {}
    reference, every = plan.policy.params, plan.pairs.measure_every
    started = time.monotonic()
    if every and index % every == 0:
      jax.block_until_ready(state.step)  # so that `sampling_seconds` leaves the update before it out
      started = time.monotonic()
      current = plan.as_policy(state.params, reference)
      groups, stats, cut = self._measure(current, index // every, jax.random.fold_in(state.rng, index))
      placed = sharding.place((groups, stats), sharding.rows_sharding(plan.policy.mesh, plan.sampling.prompts))
      state, measured = self._dual_step(state, reference, *placed)
      host = {"truncation": cut}
    host["sampling_seconds"] = time.monotonic() - started
    batch, placed = self._take(index)
    state, metrics = self._step(state, placed, reference if plan.adapters else None)
    self._ready = (index + 1, *self.make(index + 1)) if index + 1 < plan.steps else None  # beside the devices' work
    host |= {"tokens": int(batch.mask.sum()), "padding": pair_tokens.padding_share(batch.packed)}
    return state, measured | metrics, host

  def remarks(self, metrics: dict[str, float]) -> Iterator[str]:
    """Lines for the user about a step's metrics: chosen responses that become much less likely, said once."""
    if not self._warned and metrics.get("chosen_change", 0.0) < -self._chosen_fall:
      self._warned = True
      yield (
        f"step {metrics['step']}: the chosen responses' log-prob fell by {-metrics['chosen_change']:.1f} nats from the"
        " reference; set offline.nll_weight, or lower the learning rate"
      )

  def _take(self, index: int):
    return self._ready[1:] if self._ready and self._ready[0] == index else self.make(index)

  def make(self, index: int):
    """The batch of a step, from 0: on the host, and placed."""
    indices = self._rows.indices(index)
    packed, mask = self._rows.packed(indices)
    ref_log_probs = None if self._ref_log_probs is None else self._ref_log_probs[indices]
    weight, lists = jax.tree.map(lambda x: x[indices], (self._weights, self._pairs.lists))
    batch = offline_step.PairBatch(packed, mask, ref_log_probs, weight, lists)
    return batch, sharding.place(batch, sharding.rows_sharding(self._plan.policy.mesh, self._plan.pairs.per_step))

  def _reference(self, policy) -> np.ndarray:
    """[N, G] nats; rows never visited stay NaN, so that a wrong use of one shows."""
    plan, pairs = self._plan, self._pairs
    size, count = plan.pairs.per_step, len(pairs.rows)
    steps = min(plan.steps, -(-count // size))  # of the first epoch
    visited = sorted({index for step in range(steps) for index in self._rows.indices(step)})
    found = np.full((count, len(pairs.responses[0])), np.nan, np.float32)
    if not self._cached:
      found[visited] = self._score(policy, visited)
      return found
    if jax.process_count() > 1:
      raise InputError("offline.reference_cache is for one process: its file is one machine's; set it to False")
    model = reference_cache.model_hash(policy.params, policy.config)
    keys = reference_cache.example_keys(
      pairs,
      model=model,
      tokenizer=reference_cache.tokenizer_hash(policy.tokenizer),
      settings={"temperature": plan.sampling.temperature},
    )
    path = demo_model.cache_dir() / "reference" / f"{model[:32]}-{found.shape[1]}.npz"
    compute = lambda places: self._score(policy, [visited[place] for place in places])
    found[visited], computed = reference_cache.get_or_compute(path, keys[visited], compute)
    print(f"Reference log-probs of {len(visited)} pairs: {computed} computed, the others from {path}")
    return found

  def _score(self, policy, visited) -> np.ndarray:
    """[n, G] nats of some examples, computed beside others of their length."""
    score = functools.partial(offline_step.score, **_scoring(self._plan))
    score = jax.jit(sharding.on_mesh(score, policy.mesh))
    size, found = self._plan.pairs.per_step, {}
    by_length = self._rows.by_length(visited)
    for start in range(0, len(by_length), size):
      indices = by_length[start : start + size]
      indices = self._rows.dealt(indices + indices[:1] * (size - len(indices)))
      packed, mask = self._rows.packed(indices)
      batch = sharding.place(offline_step.PairBatch(packed, mask, None), sharding.rows_sharding(policy.mesh, size))
      found |= zip(indices, sharding.to_host(score(policy.params, batch).log_prob.sum(-1)))
    return np.stack([found[index] for index in visited])


class Sampled:
  """Pairs of the reference's own samples, kept in a file that a resumed run reads."""

  def __init__(self, settings: Sampling, rows, reward: Callable, *, seed: int, make: Callable, read: Callable):
    """Samples nothing yet.

    Args:
      settings: of sampling.
      rows: every prompt.
      reward: the reward function.
      seed: of the run.
      make: (place of a prompt, its row, samples as token ids, rewards) -> pairs, or scored responses.
      read: source of a file -> what was written there.
    """
    self._settings, self.rows, self._reward = settings, rows, reward
    self._seed, self._make, self._read = seed, make, read

  def __call__(self, policy, path: pathlib.Path) -> list:
    """The pairs in the file, or those made now and written there."""
    if path.exists():
      return self._read(f"jsonl:{path}")
    sample = sampling.GroupSampler(policy, self._settings, self.rows)
    size, found, unscored = self._settings.prompts, [], 0
    for start in range(0, len(sample.rows), size):
      chosen = sample.rows[start : start + size]
      rng = jax.random.fold_in(jax.random.key(self._seed), start)
      padded = chosen + chosen[:1] * (size - len(chosen))
      samples = sample(policy.params, padded, rng, self._settings.group_size)
      rewards = sampling.group_rewards(self._reward, samples)
      for place, (row, responses, scores) in enumerate(zip(chosen, samples.responses, rewards), start=start):
        judged = np.flatnonzero(np.isfinite(scores))
        unscored += len(scores) - len(judged)
        if judged.size:
          found += self._make(place, row, [responses[i] for i in judged], scores[judged])
    if unscored:
      print(f"{unscored} samples could not be judged, and are in no pair")
    if not found:
      raise InputError(
        "the samples of every prompt are all alike in reward, so they make no pairs; raise sampling.group_size, or"
        " use offline.pairs=source"
      )
    workdirs.write(path, "".join(json.dumps(scored.to_json(pair)) + "\n" for pair in found))
    return found


class Measurement:
  """Fresh, scored samples of a policy on the training prompts."""

  def __init__(self, sample: sampling.GroupSampler, reward: Callable, settings: Sampling, *, seed: int):
    """Prepares for the sampler's rows."""
    self._sample, self._reward, self._settings, self._seed = sample, reward, settings, seed

  def __call__(self, params, count: int, rng) -> tuple[GroupBatch, TokenStats, float]:
    """The groups of the count-th measurement, their log-probs and entropies, and the share that was cut."""
    settings, rows = self._settings, self._sample.rows
    chosen = prompts.batch_indices(count, settings.prompts, len(rows), self._seed)
    samples = self._sample(params, [rows[i] for i in chosen], rng, settings.group_size)
    rewards = checked.least_for_unscored(sampling.group_rewards(self._reward, samples))
    packed = packing.pack_groups(samples.prompts, samples.responses, bucket=settings.bucket)
    rollout, fresh = samples.rollout, np.ones(rewards.shape, bool)
    groups = GroupBatch(packed, rollout.mask, {"reward": rewards}, fresh, ~fresh)
    return groups, TokenStats(rollout.log_probs, rollout.entropies), float(np.mean(rollout.truncated))


def compile_step(plan: Plan, shardings):
  """The jitted policy step: state placed by its shardings and donated.

  It takes (state, batch, the reference's parameters where adapters are trained beside them, else None).
  """
  policy = plan.policy
  step = functools.partial(
    offline_step.offline_step,
    objective=plan.objective,
    optimizer=plan.optimizers.policy,
    as_policy=plan.as_policy,
    micro_batches=plan.micro_batches,
    **_scoring(plan),
  )
  frozen = jax.tree.map(lambda leaf: leaf.sharding, policy.params) if plan.adapters else None
  return jax.jit(
    sharding.on_mesh(step, policy.mesh),
    in_shardings=(shardings, sharding.rows_sharding(policy.mesh, plan.pairs.per_step), frozen),
    out_shardings=(shardings, sharding.replicated(policy.mesh)),
    donate_argnums=0,
  )


def compile_dual_step(plan: Plan, shardings):
  """The jitted step of the multipliers on measured groups; the policy passes through it."""
  policy = plan.policy
  step = functools.partial(
    offline_step.dual_step, objective=plan.objective, optimizer=plan.optimizers.dual, **_scoring(plan)
  )
  reference = jax.tree.map(lambda leaf: leaf.sharding, policy.params)
  split = sharding.rows_sharding(policy.mesh, plan.sampling.prompts)
  return jax.jit(
    sharding.on_mesh(reading_reference(step, reference), policy.mesh),
    in_shardings=(shardings, reference, split, split),
    out_shardings=(shardings, sharding.replicated(policy.mesh)),
    donate_argnums=0,
  )


def _scoring(plan: Plan) -> dict[str, Any]:
  settings = plan.sampling
  return {"config": plan.policy.config, "temperature": settings.temperature, "chunk_size": settings.chunk_size}
