"""Synthetic evaluation rows with known quality, diversity, entropy and KL."""

import numpy as np
import pytest

from qempo_jax.rewards import open_list

# quality, number of equally likely answers, entropy (nats), KL (nats)
EVALUATED = ("train", "heldout_wordings", "heldout_set")
POLICIES = {
  "base": (0.5, 10, 9.0, 0.0),
  "grpo": (0.95, 1, 0.6, 4.0),
  "qempo": (0.6, 8, 20.0, 5.0),
  "qempo_kl": (0.95, 6, 3.0, 2.5),
}


def synthetic_rows(policies=POLICIES, splits=EVALUATED, seeds=(0,), num_samples=12, rng_seed=0):
  """Rows of every policy, split, task, seed and sample; an unacceptable completion tries to break HTML."""
  rng = np.random.default_rng(rng_seed)
  rows = []
  for method, (quality, num_answers, entropy, kl) in policies.items():
    for seed in seeds:
      for task in (task for split in splits for task in open_list.tasks(split)):
        items = open_list.answer_set(task.set_name).items[:num_answers]
        for sample in range(num_samples):
          good = rng.random() < quality
          answer = items[rng.integers(len(items))] if good else None
          log_prob = -entropy + rng.normal()
          rows.append({
            "method": method, "seed": seed, "split": task.split, "set_name": task.set_name, "prompt": task.prompt,
            "sample": sample, "completion": answer or "<script>alert('x')</script> & $x$", "answer": answer,
            "reward": float(good), "log_prob": log_prob, "ref_log_prob": log_prob - kl + 0.3 * rng.normal(),
            "entropy": entropy + 0.5 * rng.normal(), "num_tokens": 4, "truncated": not good and method == "qempo",
          })  # fmt: skip
  return rows


def synthetic_metrics(num_steps=40):
  """Training steps of the trained policies; GRPO logs no multipliers, and no method logs lengths."""
  rng = np.random.default_rng(0)
  return {
    method: [
      {"step": step, "reward": quality - 0.4 * np.exp(-step / 8) + 0.03 * rng.normal(), "floor": 0.85,
       "entropy": entropy, "truncation": 0.3 if method == "qempo" else 0.0}
      | ({} if method == "grpo" else {"dual/quality/multiplier": 2.0 + step / 10, "dual/kl/multiplier": 0.5,
                                          "dual/quality/violation": 0.4 * np.exp(-step / 8), "dual/kl/violation": -0.5})
      for step in range(1, num_steps + 1)
    ]
    for method, (quality, _, entropy, _) in POLICIES.items() if method != "base"
  }  # fmt: skip


@pytest.fixture(scope="session")
def make_rows():
  return synthetic_rows


@pytest.fixture(scope="session")
def make_metrics():
  return synthetic_metrics
