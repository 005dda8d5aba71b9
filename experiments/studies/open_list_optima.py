"""Effective number of answers of the programs' optima on the open-list prompts, for comparison with training.

Given that a response is acceptable, RLHF's optimum is distributed as the reference q, and QEMPO-KL's as
q^(mu / (1 + mu)). QEMPO's (mu = 0) is uniform over the acceptable strings. Each listed item is scored under q in its
canonical spelling and in lower case, with and without a final full stop. Rarer accepted spellings are left out.

  python -m experiments.studies.open_list_optima --config=configs/open_list_study.py --workdir=runs/open_list_optima
"""

import json

import jax
import numpy as np

from experiments import cli
from experiments import samples
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.run import workdir as workdirs
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.rewards import open_list

KL_MULTIPLIERS = (0.0, 0.5, 1.0, 2.0)  # mu of QEMPO-KL's optima
DRAWS = 2000


def main(config, workdir, dry_run):
  """Scores every acceptable string under the reference and writes optima.json."""
  shared = config.qempo_kl
  policy = build_policy.policy(shared)
  if dry_run:
    return
  workdir = workdirs.open_workdir(workdir, config)
  rows = build_data.evaluation_rows(shared)
  encoded = samples.GroupSampler(policy, build_data.sampling(shared), rows)
  optima = [optima_of(row, policy, shared, encoded.encode(row)) for row in encoded.rows]
  for split in dict.fromkeys(row["split"] for row in optima):
    of_split = [row for row in optima if row["split"] == split]
    count = of_split[0]["samples"]
    print(f"{split}: {len(of_split)} prompts; effective answers, exact and estimated from {count} samples")
    for name in of_split[0]["effective_answers"]:
      pair = np.mean([row["effective_answers"][name] for row in of_split], axis=0)
      print(f"  {name:24s} {pair[0]:6.2f} {pair[1]:6.2f}")
  workdirs.write_atomically(workdir / "optima.json", json.dumps({"prompts": optima}, indent=1) + "\n")


def optima_of(row, policy, config, prompt) -> dict:
  """Effective answers of each optimum on one prompt: exp(entropy), exact and as the mean plug-in estimate of a sample."""
  strings, answers = acceptable_strings(row["set_name"])
  log_q = reference_log_probs(strings, prompt, policy, config)
  size = config.evaluation.samples_per_prompt
  reachable = np.isfinite(log_q)
  tempered = lambda power: np.where(reachable, power * np.where(reachable, log_q, 0.0), -np.inf)
  optima = {"RLHF": log_q} | {f"QEMPO-KL, mu = {mu:g}": tempered(mu / (1 + mu)) for mu in KL_MULTIPLIERS}
  return {
    "prompt": row["prompt"],
    "set_name": row["set_name"],
    "split": row["split"],
    "samples": size,
    "reference_mass": float(np.exp(log_q).sum()),
    "effective_answers": {name: effective(logits, answers, size) for name, logits in optima.items()},
  }


def acceptable_strings(set_name):
  """Strings that the reward accepts, and the index of each string's answer."""
  items = open_list.answer_set(set_name).items
  spelled = lambda item: dict.fromkeys([item, item + ".", item.lower(), item.lower() + "."])
  pairs = [(text, index) for index, item in enumerate(items) for text in spelled(item)]
  strings, answers = zip(*pairs)
  return strings, np.array(answers)


def reference_log_probs(strings, prompt, policy, config):
  """log q of each string with EOS; -inf if it is longer than a response may be."""
  longest = config.sampling.max_response_length
  ids = [[*policy.tokenizer.encode(text, add_special_tokens=False), policy.stop_tokens[0]] for text in strings]
  kept = [index for index, tokens in enumerate(ids) if len(tokens) <= longest]
  log_q = np.full(len(strings), -np.inf)
  for start in range(0, len(kept), 64):
    chosen = kept[start : start + 64]
    group = [ids[index] for index in chosen] + [()] * (64 - len(chosen))
    packed = packing.pack_groups([prompt], [group], bucket=256)
    stats = _SCORE(
      policy.params,
      policy.config,
      packed,
      group_size=64,
      max_length=longest,
      temperature=config.sampling.temperature,
      chunk_size=config.compute.chunk_size,
    )
    log_q[chosen] = np.asarray(stats.log_prob.sum(-1))[0, : len(chosen)]
  return log_q


_SCORE = jax.jit(scoring.score_groups, static_argnames=("config", "group_size", "max_length", "chunk_size"))


def effective(logits, answers, size):
  """exp(entropy) over answers of softmax(logits) over strings: [limit, expected plug-in estimate of `size` samples]."""
  usable = np.isfinite(logits)
  weights = np.where(usable, np.exp(logits - logits[usable].max()), 0.0)
  probs = np.bincount(answers, weights / weights.sum())
  counts = np.random.default_rng(0).multinomial(size, probs / probs.sum(), DRAWS)
  return [float(np.exp(_entropy(probs))), float(np.exp(_entropy(counts / size)).mean())]


def _entropy(probs):
  return -np.sum(np.where(probs > 0, probs * np.log(np.maximum(probs, 1e-300)), 0.0), axis=-1)


if __name__ == "__main__":
  cli.run(
    main,
    description="Effective answers of the programs' own optima on the open-list prompts.",
    example="python -m experiments.studies.open_list_optima --config=configs/open_list_study.py --workdir=runs/open_list_optima",
  )
