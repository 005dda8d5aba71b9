"""Distance from the optimum after QEMPO training with each entropy gradient, on the frontier's toy.

  python -m experiments.studies.entropy_gradients

The toy is that of configs/frontier_toy.py (a transformer, 12 prompts, 85 responses each). QEMPO trains at two floors,
with groups of 8 and of 32, 600 steps, and eight seeds shared by the gradients. The figure is KL(pi || pi*) from the
exact optimum pi*, in nats, the mean over prompts. Writes docs/results/entropy_gradients.json and prints a Markdown
table.
"""

import json
import pathlib
import time

import jax
import numpy as np

from configs import frontier_toy
from experiments.measure import enumerable
from experiments.studies import cells
from qempo_jax import exact
from qempo_jax.evaluation import intervals

GRADIENTS = ("rao_blackwell", "score_function")
DROPPED = "rao_blackwell_leave_one_out"  # only in the JSON, no longer in the code: see RESULTS.md
FLOORS, GROUP_SIZES, SEEDS = (0.6, 0.9), (8, 32), tuple(range(8))
OUT = pathlib.Path(__file__).parents[2] / "docs" / "results" / "entropy_gradients.json"


def run(gradient: str, floor: float, group_size: int, problem: enumerable.Problem) -> list[dict[str, float]]:
  """Trains all seeds, and returns one dict of figures per seed."""
  configs = []
  for seed in SEEDS:
    config = frontier_toy.get_config().qempo
    config.seed = seed
    config.method = f"qempo(entropy_gradient={gradient!r})"
    config.constraints.quality.bound = floor
    config.sampling.group_size = group_size
    configs.append(config)
  params = enumerable.train(configs, problem).params
  with jax.enable_x64(True):
    rewards = np.asarray(problem.rewards, np.float64)
    best = np.asarray(exact.solve_qempo(rewards, min_reward=floor).log_probs)
  rows = []
  for index in range(len(SEEDS)):
    log_p = np.asarray(problem.log_probs(jax.tree.map(lambda leaf, index=index: leaf[index], params)), np.float64)
    p = np.exp(log_p)
    figures = {
      "kl_to_optimum": np.sum(p * (log_p - best), axis=-1).mean(),
      "reward": np.sum(p * rewards, axis=-1).mean(),
      "entropy": -np.sum(p * log_p, axis=-1).mean(),
    }
    rows.append({name: float(f"{value:.6g}") for name, value in figures.items()})
  return rows


def table(rows: list[dict]) -> list[str]:
  """Markdown table of the distance from the optimum, with differences from Rao-Blackwell's, paired by seed."""
  heads = ("floor", "group", "Rao-Blackwell", "score function, less it", "Rao-Blackwell with leave-one-out, less it")
  lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
  of = {(row["floor"], row["group_size"], row["gradient"]): row["seeds"] for row in rows}
  # Seeds are the random units here, and take the place of prompts.
  distances = {key: np.array([[figures["kl_to_optimum"]] for figures in seeds]) for key, seeds in of.items()}
  for case in dict.fromkeys(key[:2] for key in of):
    plain = distances[*case, "rao_blackwell"]
    shown = [cells.interval(intervals.mean_interval(plain), 3)]
    for gradient in ("score_function", DROPPED):
      other = distances.get((*case, gradient))
      shown.append("–" if other is None else cells.interval(intervals.paired_difference(other, plain), 3))
    lines.append(f"| {case[0]} | {case[1]} | {' | '.join(shown)} |")
  return lines


def main() -> None:
  """Trains every case, writes the JSON, prints the table."""
  started = time.process_time()
  problem = enumerable.make_problem(frontier_toy.get_config().enumerable)
  rows = [
      {"floor": floor, "group_size": size, "gradient": gradient, "seeds": run(gradient, floor, size, problem)}
      for floor in FLOORS for size in GROUP_SIZES for gradient in GRADIENTS
  ]  # fmt: skip
  # Keep the stored rows of the dropped gradient.
  rows += [row for row in json.loads(OUT.read_text(encoding="utf-8"))["rows"] if row["gradient"] == DROPPED]
  OUT.write_text(
    json.dumps({"cpu_seconds": round(time.process_time() - started, 1), "rows": rows}) + "\n", encoding="utf-8"
  )
  print(*table(rows), sep="\n")


if __name__ == "__main__":
  main()
