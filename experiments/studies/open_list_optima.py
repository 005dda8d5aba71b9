"""Effective number of answers of the programs' optima on the open-list prompts, for comparison with training.

Given that a response is acceptable, RLHF's optimum is distributed as the reference q, and QEMPO-KL's as
q^(mu / (1 + mu)); QEMPO's (mu = 0) and QEMPO-C's are uniform over the acceptable strings. Each listed item is scored under q
in its canonical spelling and in lower case, with and without a final full stop; rarer accepted spellings are left out.

  python -m experiments.studies.open_list_optima --config=configs/open_list_study.py --workdir=runs/open_list_optima
"""

import json

import numpy as np

from experiments import cli
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from experiments.measure import exact_figures
from experiments.run import workdir as workdirs
from qempo_jax.data import pair_tokens
from qempo_jax.paths import write_atomically
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
  rows, e = build_data.evaluation_rows(shared), shared.evaluation
  listed = exact_figures.ListedAnswers(
    policy,
    build_sampling.sampling(shared, policy),
    e.prompts_per_batch,
    pair_tokens.Encoder(policy.tokenizer),
    forms=spellings,
    tolerance=0.0,
  )
  scored = listed.log_probs(policy.params, rows)
  found = [optima_of(row, *of_prompt[:2], e.samples_per_prompt) for row, of_prompt in zip(rows, scored)]
  for split in dict.fromkeys(row["split"] for row in found):
    here = [row for row in found if row["split"] == split]
    print(f"{split}: {len(here)} prompts; effective answers, in the limit and as {here[0]['samples']} samples show it")
    for name in here[0]["effective_answers"]:
      pair = np.mean([row["effective_answers"][name] for row in here], axis=0)
      print(f"  {name:24s} {pair[0]:6.2f} {pair[1]:6.2f}")
  write_atomically(workdir / "optima.json", json.dumps({"prompts": found}, indent=1) + "\n")


def optima_of(row, responses, log_q, size) -> dict:
  """Effective answers of each optimum on one prompt: exp(entropy), exact and the mean plug-in of `size` samples."""
  answers = np.unique(list(responses.values()), return_inverse=True)[1]
  optima = {"RLHF": log_q} | {f"QEMPO-KL, mu = {mu:g}": mu / (1 + mu) * log_q for mu in KL_MULTIPLIERS}
  return {
    "prompt": row["prompt"],
    "set_name": row["set_name"],
    "split": row["split"],
    "samples": size,
    "reference_mass": float(np.exp(log_q).sum()),
    "effective_answers": {name: effective(logits, answers, size) for name, logits in optima.items()},
  }


def spellings(set_name):
  """Four strings of each item that the reward accepts, and the item."""
  items = open_list.answer_set(set_name).items
  return {text: item for item in items for text in (item, item + ".", item.lower(), item.lower() + ".")}


def effective(logits, answers, size):
  """exp(entropy) over answers of softmax(logits) over strings: [in the limit, expected plug-in of `size` samples]."""
  weights = np.exp(logits - logits.max())
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
