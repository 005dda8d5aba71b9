"""Fresh samples of a policy on given rows, as evaluation rows."""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import numpy as np

from experiments import builders
from experiments.loops import sampling
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.data import columns
from qempo_jax.data import pair_tokens
from qempo_jax.data.prompts import Row
from qempo_jax.rewards import answers


class Evaluator:
  """Samples policies on the same rows with the same random numbers, and scores them under the reference."""

  def __init__(
    self, config, policy: builders.Policy, rows: Sequence[Row], reward: Callable, judge: Callable | None = None
  ):
    """Prepares for these rows.

    Args:
      config: a run's config.
      policy: the reference.
      rows: the prompts with their columns.
      reward: the reward function.
      judge: another one, whose scores stand beside the rewards.
    """
    self._config, self._policy = config, policy
    self._judges = {"reward": reward} | ({"judge": judge} if judge else {})
    self._sample = sampling.GroupSampler(policy, config, rows)
    self.dropped = self._sample.dropped
    self._score = jax.jit(scoring.score_groups, static_argnames=_STATIC)
    self._encoder = pair_tokens.Encoder(policy.tokenizer)

  def __call__(self, params, *, method: str, seed: int) -> list[dict]:
    """One dict a sample: see `evaluation.summary` for the fields.

    Args:
      params: the policy.
      method: its label.
      seed: the training seed that made it.
    """
    config = self._config.evaluation
    every = self._sample.rows
    tasks = columns.tell_apart([(row["split"], row["prompt"]) for row in every], list(map(columns.whole_task, every)))
    found, rng = [], jax.random.fold_in(jax.random.key(config.seed), 0)
    for start in range(0, len(self._sample.rows), config.prompts_per_batch):
      rows = list(self._sample.rows[start : start + config.prompts_per_batch])
      missing = config.prompts_per_batch - len(rows)
      samples = self._sample(params, rows + rows[:1] * missing, rng, config.samples_per_prompt, first=start)
      scores = {name: sampling.group_rewards(judge, samples) for name, judge in self._judges.items()}
      ref_log_probs = self._reference(samples)
      for index in range(len(rows)):
        labels = {"method": method, "seed": seed} | ({"task": tasks[start + index]} if tasks[start + index] else {})
        labels |= {name: rows[index][name] for name in config.cluster if name in rows[index]}
        found += _rows_of(samples, index, scores, ref_log_probs, labels, self._encoder)
    return found

  def _reference(self, samples) -> np.ndarray:
    """Log-probability of every response under the reference: [P, G] nats."""
    packed = packing.pack_groups(samples.prompts, samples.responses, bucket=self._config.compute.bucket)
    stats = self._score(
      self._policy.params,
      self._policy.config,
      packed,
      group_size=len(samples.responses[0]),
      max_length=self._config.sampling.max_response_length,
      temperature=self._config.sampling.temperature,
      chunk_size=self._config.compute.chunk_size,
    )
    return np.asarray(stats.log_prob.sum(-1))


_STATIC = ("config", "group_size", "max_length", "chunk_size")


def _rows_of(samples, index, scores, ref_log_probs, labels, encoder):
  row, rollout = samples.rows[index], samples.rollout
  for sample, (text, ids) in enumerate(zip(samples.texts[index], samples.responses[index])):
    at = (index, sample)
    set_name = row.get("set_name", "")
    yield labels | {
      "split": row["split"],
      "set_name": set_name,
      "prompt": _text(row["prompt"]),
      "sample": sample,
      "completion": text,
      "token_ids": ids.tolist(),
      "noncanonical": not encoder.is_canonical(row["prompt"], ids, text),
      "answer": answers.parse_answer(text, set_name) if set_name else None,
      **{name: float(found[at]) for name, found in scores.items()},
      "log_prob": float(rollout.log_probs[at].sum()),
      "ref_log_prob": float(ref_log_probs[at]),
      "entropy": float(rollout.entropies[at].sum()),
      "num_tokens": int(rollout.mask[at].sum()),
      "truncated": bool(rollout.truncated[at]),
    }


def _text(prompt) -> str:
  """A conversation as one text; a prompt that is one stays."""
  if isinstance(prompt, str):
    return prompt
  return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
