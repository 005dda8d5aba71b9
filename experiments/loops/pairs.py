"""The pairs of an offline run: loaded or made, encoded, and scored once under the reference."""

import functools
import json
import pathlib

import jax
import numpy as np

from experiments import builders
from experiments import packed_pairs
from experiments import workdir as workdirs
from experiments.loops import runs
from experiments.loops import sampling
from qempo_jax import offline_losses
from qempo_jax import sharding
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import reference_cache
from qempo_jax.errors import InputError
from qempo_jax.models import demo_model
from qempo_jax.train import offline_step

SAMPLED_FILE = "sampled_pairs.jsonl"


def load(config, policy: builders.Policy, workdir: pathlib.Path | None) -> list[preferences.Preference]:
  """The pairs that the config names, as text or as the sampled tokens.

  Sampled pairs are kept in `workdir/sampled_pairs.jsonl`, and a resumed run reads them from there.

  Args:
    config: a run's config.
    policy: the reference.
    workdir: the run's folder; None only checks the source, and makes no samples.

  Returns:
    The pairs; of sampled ones without a workdir, none.
  """
  if config.offline.pairs != "source":
    rows = builders.training_rows(config, policy.tokenizer)
    return [] if workdir is None else _sampled(config, policy, rows, workdir / SAMPLED_FILE)
  if config.data.source == "open_list":
    rows = builders.training_rows(config)
    return preferences.open_list_preferences(rows, per_prompt=config.offline.pairs_per_prompt, seed=config.seed)
  return preferences.load_preferences(
    config.data.source,
    rejected=offline_losses.LOSSES[config.offline.loss].responses > 1,
    on_bad_row=config.data.on_bad_row,
    max_bad_share=config.data.max_bad_share,
    note=print,
    tokenizer=policy.tokenizer,
  )


def encode(config, policy: builders.Policy, found) -> pair_tokens.PairTokens:
  """The pairs as token ids, with as many responses each as the loss reads."""
  return pair_tokens.encode_pairs(
    policy.tokenizer,
    found,
    responses=offline_losses.LOSSES[config.offline.loss].responses,
    forbidden=policy.config.forbidden,
    **packed_pairs.limits(config),
  )


class Batches:
  """The batch of every step, a pure function of (seed, step), with the reference's log-probs beside it."""

  def __init__(self, config, policy: builders.Policy, pairs: pair_tokens.PairTokens):
    """Scores the pairs that will be visited under the reference, once, where something reads that."""
    self._config, self._pairs = config, pairs
    self._rows = packed_pairs.PackedPairs(config, pairs, policy.mesh)
    self.order = self._rows.order
    self._ref_log_probs = None
    if offline_losses.LOSSES[config.offline.loss].needs_reference or config.offline.log_change:
      self._ref_log_probs = self._reference(policy)

  def __call__(self, step: int) -> offline_step.PairBatch:
    """The batch of a step, from 0."""
    indices = self._rows.indices(step)
    packed, mask = self._rows.packed(indices)
    ref_log_probs = None if self._ref_log_probs is None else self._ref_log_probs[indices]
    return offline_step.PairBatch(packed, mask, ref_log_probs)

  def _reference(self, policy) -> np.ndarray:
    """[N, G] nats; rows never visited stay NaN, so that a wrong use of one shows."""
    config, pairs = self._config, self._pairs
    size, count = config.offline.pairs_per_step, len(pairs.rows)
    steps = min(config.steps, -(-count // size))  # of the first epoch
    visited = sorted({index for step in range(steps) for index in self._rows.indices(step)})
    found = np.full((count, len(pairs.responses[0])), np.nan, np.float32)
    if not config.offline.reference_cache:
      found[visited] = self._score(policy, visited)
      return found
    if jax.process_count() > 1:
      raise InputError("offline.reference_cache is for one process: its file is one machine's; set it to False")
    model = reference_cache.model_hash(policy.params, policy.config)
    keys = reference_cache.example_keys(
      pairs,
      model=model,
      tokenizer=reference_cache.tokenizer_hash(policy.tokenizer),
      settings={"temperature": config.sampling.temperature},
    )
    path = demo_model.cache_dir() / "reference" / f"{model[:32]}-{found.shape[1]}.npz"
    compute = lambda places: self._score(policy, [visited[place] for place in places])
    found[visited], computed = reference_cache.get_or_compute(path, keys[visited], compute)
    print(f"Reference log-probs of {len(visited)} pairs: {computed} computed, the others from {path}")
    return found

  def _score(self, policy, visited) -> np.ndarray:
    """[n, G] nats of some examples, computed beside others of their length."""
    config = self._config
    score = functools.partial(
      offline_step.score,
      config=policy.config,
      temperature=config.sampling.temperature,
      chunk_size=config.compute.chunk_size,
    )
    score = jax.jit(sharding.on_mesh(score, policy.mesh))
    size, found = config.offline.pairs_per_step, {}
    by_length = self._rows.by_length(visited)
    for start in range(0, len(by_length), size):
      indices = by_length[start : start + size]
      indices = self._rows.dealt(indices + indices[:1] * (size - len(indices)))
      packed, mask = self._rows.packed(indices)
      batch = sharding.place(offline_step.PairBatch(packed, mask, None), runs.split(policy.mesh, size))
      found |= zip(indices, sharding.to_host(score(policy.params, batch).log_prob.sum(-1)))
    return np.stack([found[index] for index in visited])


def _sampled(config, policy, rows, path) -> list[preferences.Preference]:
  """Pairs made with the reference's samples of every prompt."""
  if config.offline.pairs == "answers_against_samples" and config.data.source != "open_list":
    raise InputError("offline.pairs=answers_against_samples needs data.source=open_list, whose answers are known")
  if path.exists():
    return preferences.jsonl_preferences(path, rejected=True)
  sample, reward = sampling.GroupSampler(policy, config, rows), builders.reward(config)
  size, found = config.data.prompts_per_step, []
  for start in range(0, len(sample.rows), size):
    chosen = sample.rows[start : start + size]
    rng = jax.random.fold_in(jax.random.key(config.seed), start)
    samples = sample(policy.params, chosen + chosen[:1] * (size - len(chosen)), rng, config.sampling.group_size)
    rewards = sampling.group_rewards(reward, samples)
    for place, group in enumerate(zip(chosen, samples.responses, rewards), start=start):
      if config.offline.pairs == "sampled":
        found += preferences.sampled_preferences(*group, most=config.offline.pairs_per_prompt)
      else:
        seed = (config.seed, place)
        found += preferences.answers_against_samples(*group, per_prompt=config.offline.pairs_per_prompt, seed=seed)
  if not found:
    raise InputError(
      "the samples of every prompt are all alike in reward, so they make no pairs; raise sampling.group_size, or"
      " use offline.pairs=source"
    )
  lines = (json.dumps(preferences.to_json(pair)) + "\n" for pair in found)
  workdirs.write_atomically(path, "".join(lines))
  return found
