"""Exact bias and variance of gradient estimators of sequence entropy and KL, by enumeration.

A table policy over 3 tokens (EOS among them) and at most 4 of them has 31 sequences, so that an estimator's gradient
has an exact mean and variance. They are sums over all samples, or over all groups of 2 and 3 for the leave-one-out
baseline. Its variance at any group size follows from these two, since it is a U-statistic of order 2. Policies and
references have Gaussian logits of three sizes: nearly uniform, moderate, and peaked next-token distributions.

    python -m experiments.studies.estimator_variance     # about 100 CPU-seconds

Writes docs/figures/estimator_variance.{png,json}, which docs/estimators.md describes.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import figures
from experiments.studies.estimator_surrogates import BIASED
from experiments.studies.estimator_surrogates import GROUPED
from experiments.studies.estimator_surrogates import TARGETS
from experiments.studies.estimator_surrogates import ascended
from qempo_jax.testing import Problem
from qempo_jax.testing import random_problem
from qempo_jax.testing.expectation import flat_gradient
from qempo_jax.testing.expectation import group_moments

LOGIT_SIZES = {"flat": 0.3, "moderate": 1.0, "peaked": 2.5}
REFERENCES = 4  # per size
POLICIES = 16  # per reference
VOCAB_SIZE, MAX_LENGTH = 3, 4
GROUP = 8  # group size of the table: for the leave-one-out baseline, and of the batch
LARGER_GROUPS = (2, 8, 32)


def leave_one_out_variance(of_two: float, of_three: float, group: int) -> float:
  """Variance of the leave-one-out estimate in a group of G from those in groups of 2 and of 3.

      Var_G = 2/(G (G-1)) (2 (G-2) z1 + z2),   z2 = Var_2,   z1 = (3 Var_3 - Var_2)/2

  This is Hoeffding's formula for a U-statistic of order 2, solved for its two components.
  """
  single = (3 * of_three - of_two) / 2
  return 2 / (group * (group - 1)) * (2 * (group - 2) * single + of_two)


def problems(size: float, seed: int) -> Problem:
  """Draws a reference and POLICIES policies with Gaussian logits of a size."""
  problem = random_problem(
    jax.random.key(seed),
    vocab_size=VOCAB_SIZE,
    max_length=MAX_LENGTH,
    num_prompts=1,
    num_points=POLICIES,
  )
  scaled = lambda tree: jax.tree.map(lambda x: size * x, tree)
  return Problem(
    policy=problem.policy,
    params=scaled(problem.params),
    old_params=scaled(problem.old_params),
    ref_params=scaled(problem.ref_params),
    rewards=problem.rewards,
  )


def measure(problem: Problem) -> list[dict]:
  """For every policy: bias, and variance per sample, of each estimator, relative to the exact gradient."""
  losses = {(t, name): ascended(f) for t, fs in TARGETS.items() for name, f in fs.items()}
  alone = group_moments(list(losses.values()), problem, group_size=1, behaviour="policy")
  paired = {key: loss for key, loss in losses.items() if key[1] in GROUPED}
  of_two, of_three = (group_moments(list(paired.values()), problem, group_size=n, behaviour="policy") for n in (2, 3))
  ref = problem.ref_log_probs
  exact = {
    "entropy": jax.jit(lambda p: flat_gradient(problem.policy.entropy, p)),
    "KL": jax.jit(lambda p: flat_gradient(lambda x: problem.policy.kl(x, ref), p)),
  }
  rows = []
  for params in problem.params:
    one, two, three = alone(params), of_two(params), of_three(params)
    row = {}
    for index, (target, name) in enumerate(losses):
      gradient = exact[target](params)
      square = float(gradient @ gradient)
      mean, variance = one.mean[index], {1: float(one.variance[index])}
      if (target, name) in paired:
        pair_index = list(paired).index((target, name))
        mean = two.mean[pair_index]
        pair, triple = float(two.variance[pair_index]), float(three.variance[pair_index])
        variance = {g: g * leave_one_out_variance(pair, triple, g) for g in LARGER_GROUPS}
      row.setdefault(target, {})[name] = {
        "bias": float(jnp.linalg.norm(mean - gradient)) / square**0.5,
        "variance": {str(g): v / square for g, v in variance.items()},
        "gradient_norm": square**0.5,
      }
    rows.append(row)
  return rows


def at_group(entry: dict) -> float:
  """Variance per sample; for the leave-one-out baseline in groups of GROUP."""
  return entry["variance"].get("1", entry["variance"].get(str(GROUP)))


def summarise(rows: list[dict], target: str) -> dict:
  """Medians and ranges over policies, and each unbiased estimator's rate of having the least variance."""
  names = TARGETS[target]
  relative = {
    n: np.array([at_group(r[target][n]) / at_group(r[target]["score function"]) for r in rows]) for n in names
  }
  unbiased = [n for n in names if n not in BIASED]
  quietest = np.argmin([[at_group(r[target][n]) for n in unbiased] for r in rows], axis=1)
  summary = {}
  for n in names:
    bias = np.array([r[target][n]["bias"] for r in rows])
    noise = np.array([at_group(r[target][n]) for r in rows])
    summary[n] = {
      "bias_median": float(np.median(bias)),
      "bias_largest": float(bias.max()),
      "variance_median": float(np.median(noise)),
      "relative_variance_median": float(np.median(relative[n])),
      "relative_variance_range": [float(relative[n].min()), float(relative[n].max())],
      "error_of_a_batch_median": float(np.median(np.sqrt(bias**2 + noise / GROUP))),
      "quietest_unbiased": float(np.mean(quietest == unbiased.index(n))) if n in unbiased else None,
    }
  raw = [at_group(r[target]["score function"]) for r in rows]
  for n in GROUPED:
    by_policy = [r[target][n]["variance"] for r in rows]
    summary[n]["relative_variance_median_by_group"] = {
      str(g): float(np.median([v[str(g)] / x for v, x in zip(by_policy, raw, strict=True)])) for g in LARGER_GROUPS
    }
  return summary


def tables(raw: dict) -> str:
  """Formats the measured tables of docs/estimators.md from the raw numbers."""
  number = lambda x: f"{x:.2g}" if x < 100 else f"{x:.0f}" if x < 1e4 else f"{x:.0e}"
  lines = []
  for target, groups in raw["summary"].items():
    quantities = ("bias", *(f"variance, {size}" for size in LOGIT_SIZES), "range", "error of 8", "quietest")
    lines += ["", f"| gradient of the {target} | " + " | ".join(quantities) + " |"]
    lines += ["|---" * (len(quantities) + 1) + "|"]
    for name in TARGETS[target]:
      whole = groups["all"][name]
      biased = whole["bias_largest"] > 1e-12
      bias = f"**{number(whole['bias_median'])}**" if biased else "0"
      medians = [number(groups[size][name]["relative_variance_median"]) for size in LOGIT_SIZES]
      low, high = map(number, whole["relative_variance_range"])
      won = whole["quietest_unbiased"]
      quietest = "" if won is None else f"{100 * won:.0f} %"
      error = number(whole["error_of_a_batch_median"])
      lines.append("| " + " | ".join([name, bias, *medians, f"{low} to {high}", error, quietest]) + " |")
  return "\n".join(lines[1:]) + "\n"


COLOURS = {"flat": figures.GREEN, "moderate": figures.BLUE, "peaked": figures.ORANGE}
MARKERS = {"flat": "o", "moderate": "s", "peaked": "^"}


def draw(rows: dict[str, list[dict]], path: pathlib.Path) -> None:
  """Draws one strip per estimator: its variance relative to the plain score function's, one mark per policy."""
  figure, axes = figures.panels(2, height=5.2)
  for axis, target in zip(axes, TARGETS, strict=True):
    names = [n for n in TARGETS[target] if n != "score function"][::-1]
    for height, name in enumerate(names):
      for offset, size in enumerate(LOGIT_SIZES):
        x = [at_group(r[target][name]) / at_group(r[target]["score function"]) for r in rows[size]]
        y = np.full(len(x), height + 0.22 * (1 - offset))
        axis.plot(x, y, MARKERS[size], color=COLOURS[size], markersize=5, alpha=0.35, mew=0)
        axis.plot([np.median(x)] * 2, y[:2] + [-0.1, 0.1], color=COLOURS[size], linewidth=3)
    labels = [f"{n}\n(biased)" if n in BIASED else n.replace(", ", ",\n") for n in names]
    axis.set_yticks(range(len(names)), labels)
    axis.set_xscale("log")
    axis.axvline(1, color="#444444", linestyle="--", linewidth=1)
    axis.set_ylim(-0.6, len(names) - 0.1)
    axis.set_title(f"Gradient of the {target}", loc="left")
    axis.set_xlabel("variance, in units of the plain score function's")
  top = len(TARGETS["entropy"]) - 2
  for offset, size in enumerate(LOGIT_SIZES):
    axes[0].annotate(
      f"{size} policies", (0.02, top + 0.22 * (1 - offset)), xycoords=("axes fraction", "data"),
      color=COLOURS[size], fontsize=10, va="center", fontweight="bold",
    )  # fmt: skip
  figures.save(figure, path)


def main() -> None:
  """Measures every estimator on every policy, prints the tables, and writes raw numbers and figure."""
  out = pathlib.Path(__file__).parents[2] / "docs" / "figures"
  with jax.enable_x64(True):
    rows = {
      name: [r for seed in range(REFERENCES) for r in measure(problems(size, seed))]
      for name, size in LOGIT_SIZES.items()
    }
  everything = [r for group in rows.values() for r in group]
  results = {
    target: {"all": summarise(everything, target)} | {name: summarise(group, target) for name, group in rows.items()}
    for target in TARGETS
  }
  settings = {
    "logit_sizes": LOGIT_SIZES,
    "references": REFERENCES,
    "policies_a_reference": POLICIES,
    "vocab_size": VOCAB_SIZE,
    "max_length": MAX_LENGTH,
    "group": GROUP,
  }
  raw = _rounded({"settings": settings, "summary": results, "policies": rows})
  print(tables(raw))
  (out / "estimator_variance.json").write_text(json.dumps(raw) + "\n")
  draw(rows, out / "estimator_variance.png")


def _rounded(tree):
  """Rounds floats to five significant digits."""
  if isinstance(tree, dict):
    return {key: _rounded(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [_rounded(value) for value in tree]
  return float(f"{tree:.5g}") if isinstance(tree, float) else tree


if __name__ == "__main__":
  main()
