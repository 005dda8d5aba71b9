"""Failure of pure QEMPO under a loose floor and a growing length cap, solved exactly on a task with short good answers.

  python -m experiments.studies.loose_floor

The vocabulary has 5 tokens, EOS among them. Good responses (reward 1) are the 16 with two tokens and EOS; all others
have reward 0. The reference is a random table policy. Each program is solved exactly at each cap and floor; QEMPO-KL's
budget lies halfway in its feasible range. Writes docs/results/loose_floor.json and prints Markdown tables.
"""

import json
import pathlib
import time

import jax
import numpy as np

from qempo_jax import exact
from qempo_jax.testing import EnumerablePolicy

VOCAB_SIZE, GOOD_LENGTH = 5, 3
CAPS, FLOORS, SEEDS = (3, 4, 5, 6, 7), (0.5, 0.9, 0.99), (0, 1, 2)
SHARPNESS = 2.0  # scale of the reference's logits, so that it is far from uniform
COLUMNS = {
  "entropy": "entropy (nats)",
  "length": "length",
  "truncation": "truncated",
  "effective_answers": "effective good answers",
  "bad_under_reference": "bad text",
}
END_LOGIT = 2.0  # added to the logit of EOS, so that the reference ends its responses


def solve(cap: int, floor: float, seed: int) -> dict[str, dict[str, float]]:
  """Returns figures of each program's exact optimum."""
  table = EnumerablePolicy.table(VOCAB_SIZE, cap)
  space = table.space
  with jax.enable_x64(True):
    logits = SHARPNESS * np.asarray(table.init(jax.random.key(seed)), np.float64)
    logits[:, 0] += END_LOGIT
    reference = jax.nn.log_softmax(table.log_probs(logits))
    good = (space.lengths == GOOD_LENGTH) & ~space.truncated
    rewards = good.astype(np.float64)
    budget = float(exact.feasible_range(rewards, reference, min_reward=floor).kl_budget_at(0.5))
    solutions = {
      "RLHF": exact.solve_rlhf(rewards, reference, min_reward=floor),
      "QEMPO-KL": exact.solve_qempo_kl(rewards, reference, min_reward=floor, max_kl=budget),
      "QEMPO": exact.solve_qempo(rewards, min_reward=floor, ref_log_probs=reference),
    }
  figures = {}
  for name, solution in solutions.items():
    p = np.exp(np.asarray(solution.log_probs))
    inside = p[good] / p[good].sum()
    figures[name] = {
      "reward": float(p @ rewards),
      "entropy": float(solution.entropy),
      "length": float(p @ space.lengths),
      "truncation": float(p @ space.truncated),
      "effective_answers": float(np.exp(-np.sum(inside * np.log(np.maximum(inside, 1e-300))))),
      "bad_under_reference": float(np.sum(np.where(good, 0, p) * np.asarray(reference)) / max(1e-12, p[~good].sum())),
      "kl": float(solution.kl),
    }
  return figures


def main() -> None:
  """Solves every case, writes the JSON, prints the tables."""
  started = time.process_time()
  rows = [
      {"cap": cap, "floor": floor, "seed": seed, "figures": solve(cap, floor, seed)}
      for cap in CAPS for floor in FLOORS for seed in SEEDS
  ]  # fmt: skip
  out = pathlib.Path(__file__).parents[2] / "docs" / "results" / "loose_floor.json"
  out.write_text(
    json.dumps({"cpu_seconds": round(time.process_time() - started, 1), "rows": rows}) + "\n", encoding="utf-8"
  )
  for floor in FLOORS:
    print(f"Floor {floor}", *table(rows, floor=floor, caps=CAPS), "", sep="\n")


def table(rows, *, floor: float, caps=(3, 5, 7)) -> list[str]:
  """Markdown table of one floor: means over the references, with smallest and largest in brackets."""
  lines = [f"| cap | program | {' | '.join(COLUMNS.values())} |", f"|---|---{'|---' * len(COLUMNS)}|"]
  for cap in caps:
    for program in ("RLHF", "QEMPO-KL", "QEMPO"):
      of = [row["figures"][program] for row in rows if (row["cap"], row["floor"]) == (cap, floor)]
      cells = [
        f"{np.mean([f[n] for f in of]):.2f} ({min(f[n] for f in of):.2f} to {max(f[n] for f in of):.2f})"
        for n in COLUMNS
      ]
      lines.append(f"| {cap} | {program} | {' | '.join(cells)} |")
  return lines


if __name__ == "__main__":
  main()
