"""Comparison of the PI controller with plain dual ascent over many random problems.

`dual_controllers` compares them on one problem. Here gains are tuned on ten random problems and then fixed on ten
others, with and without noise of sd 0.2 on the measured reward. The problems are those of the exactness study: two
prompts of 31 responses, one multiplier, QEMPO. A policy with free logits climbs the Lagrangian by exact gradients.

Each controller gets the gains of its grid with the fewest settling steps, averaged over the tuning problems. Both grids
have the same integral gains, so plain ascent is at its fastest. Plain ascent is also shown at the PI controller's
integral gain, and at every other gain of the grid.

    python -m experiments.studies.controllers_over_problems    # docs/figures/controllers_over_problems.{json,png}
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.dual_controllers import NOISE
from experiments.studies.dual_controllers import STEP_SIZE
from experiments.studies.dual_controllers import STEPS
from experiments.studies.dual_controllers import TOLERANCE
from experiments.studies.dual_controllers import ascent
from experiments.studies.exactness_problems import Problem
from experiments.studies.exactness_problems import random_problems
from experiments.studies.exactness_problems import table_policy
from qempo_jax import duals

TUNING_SEEDS, SEEDS = tuple(range(10)), tuple(range(100, 110))
NOISE_SEEDS = 8
INTEGRAL_GAINS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
PROPORTIONAL_GAINS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0)
SMOOTHINGS = (0.0, 0.8, 0.9, 0.95, 0.98)
GRID = {
  "plain ascent": [(0.0, k_i, 0.0) for k_i in INTEGRAL_GAINS],
  "PI": [(k_p, k_i, s) for s in SMOOTHINGS for k_p in PROPORTIONAL_GAINS for k_i in INTEGRAL_GAINS],
}


@functools.partial(jax.jit, static_argnames=("smoothing", "noise_seeds"))
def simulate(
  problems: Problem, gains: jax.Array, noise: float, *, smoothing: float, noise_seeds: int
) -> tuple[jax.Array, jax.Array]:
  """Overshoot and settling step for each of [K, 2] gains, problems and noise seeds.

  Returns:
    (largest excess over the floor, first step from which the expected reward stays within the tolerance of the floor;
    STEPS if it never settles), both [K, problems, noise_seeds].
  """
  tolerance = jnp.where(noise > 0, TOLERANCE[NOISE], TOLERANCE[0.0])

  def one(gains, rewards, floor, key):
    controller = duals.pi_controller(proportional_gain=gains[0], integral_gain=gains[1], smoothing=smoothing)

    start, climb = ascent(controller, rewards, floor)

    def step(carry, index_and_error):
      climbing, highest, last_outside = carry
      index, error = index_and_error
      climbing, (reward, _) = climb(climbing, error)
      outside = jnp.abs(reward - floor) > tolerance
      return (climbing, jnp.maximum(highest, reward), jnp.where(outside, index + 1, last_outside)), None

    errors = noise * jax.random.normal(key, (STEPS,))
    carry = start, jnp.mean(rewards), jnp.zeros((), jnp.int32)
    (_, highest, settled), _ = jax.lax.scan(step, carry, (jnp.arange(STEPS), errors))
    return jnp.maximum(highest - floor, 0.0), settled

  keys = jax.random.split(jax.random.key(0), noise_seeds)
  over_noise = jax.vmap(one, (None, None, None, 0))
  over_problems = jax.vmap(over_noise, (None, 0, 0, None))
  return jax.vmap(over_problems, (0, None, None, None))(gains, problems.rewards, problems.min_reward, keys)


def outcomes(problems: Problem, grid: list[tuple[float, float, float]], noise: float) -> list[dict]:
  """Overshoot and settling step of each (proportional, integral, smoothing): per problem, mean over noise seeds."""
  by_gains = {}
  for smoothing in sorted({s for _, _, s in grid}):
    gains = [(k_p, k_i) for k_p, k_i, s in grid if s == smoothing]
    parts = simulate(problems, jnp.array(gains), noise, smoothing=smoothing, noise_seeds=NOISE_SEEDS if noise else 1)
    overshoot, settled = (np.asarray(x, float).mean(axis=-1) for x in parts)
    for i, (k_p, k_i) in enumerate(gains):
      by_gains[k_p, k_i, smoothing] = {"overshoot": overshoot[i], "settled": settled[i]}
  return [
    {"proportional_gain": g[0], "integral_gain": g[1], "smoothing": g[2]}
    | {k: v.round(4).tolist() for k, v in by_gains[g].items()}
    for g in grid
  ]


def tune(problems: Problem, name: str, noise: float) -> tuple[float, float, float]:
  """Returns the gains of the grid with the fewest steps to settle, averaged over problems."""
  settled = [np.mean(outcome["settled"]) for outcome in outcomes(problems, GRID[name], noise)]
  return GRID[name][int(np.argmin(settled))]


def compare(noise: float) -> dict:
  """Compares both controllers at one noise level: tuned on one set of problems, measured on the other."""
  policy = table_policy()
  tuning, test = (random_problems(policy, "qempo", seeds) for seeds in (TUNING_SEEDS, SEEDS))
  gains = {name: tune(tuning, name, noise) for name in GRID}
  plain = outcomes(test, GRID["plain ascent"], noise)
  same_gain = (0.0, gains["PI"][1], 0.0)
  result = {
    "noise_sd": noise,
    "PI": outcomes(test, [gains["PI"]], noise)[0],
    "plain ascent, tuned": plain[GRID["plain ascent"].index(gains["plain ascent"])],
    "plain ascent, PI's integral gain": plain[GRID["plain ascent"].index(same_gain)],
    "plain ascent, every gain": plain,
  }
  for name in ("plain ascent, tuned", "plain ascent, PI's integral gain"):
    result[f"PI / {name}"] = ratios(result["PI"], result[name])
  return result


def ratios(controlled: dict, plain: dict) -> dict:
  """Ratios of settling steps and overshoot per problem, and the number of problems in which the claim holds."""
  over = lambda key: np.asarray(controlled[key]) / np.maximum(np.asarray(plain[key]), 1e-9)
  settling, overshoot = over("settled"), over("overshoot")
  return {
    "settling_ratio": settling.round(3).tolist(),
    "overshoot_ratio": overshoot.round(3).tolist(),
    "median_settling_ratio": float(np.median(settling)),
    "median_overshoot_ratio": float(np.median(overshoot)),
    "under_half_the_steps": int(np.sum(settling < 1 / 2)),
    "under_a_third_of_the_overshoot": int(np.sum(overshoot < 1 / 3)),
    "both": int(np.sum((settling < 1 / 2) & (overshoot < 1 / 3))),
  }


def draw(results: list[dict], path: pathlib.Path) -> None:
  """Plots settling steps against overshoot: a point per problem, and the path of plain ascent's means over its gains."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, len(results), figsize=(11, 4.5), sharey=True, layout="constrained")
  for axis, result in zip(axes, results, strict=True):
    every = result["plain ascent, every gain"]
    means = np.array([[np.mean(o["settled"]), np.mean(o["overshoot"])] for o in every])
    axis.plot(*means.T, ".-", color="grey", linewidth=0.8, label="plain ascent, every gain: mean")
    for name in ("plain ascent, PI's integral gain", "plain ascent, tuned", "PI"):
      o = result[name]
      label = f"{name}: k_p {o['proportional_gain']:g}, k_i {o['integral_gain']:g}"
      axis.scatter(o["settled"], o["overshoot"], s=18, label=label)
    axis.set_xscale("log")
    axis.set_xlabel(f"step from which E[r] stays within {TOLERANCE[result['noise_sd']]:g} of the floor")
    axis.set_title(f"reward noise sd {result['noise_sd']:g}, {len(SEEDS)} problems")
    axis.legend(fontsize=7)
  axes[0].set_ylabel("overshoot of the floor")
  figure.savefig(path, dpi=120)


def main() -> None:
  """Compares at every noise level, prints the ratios, writes the JSON and the figure."""
  figures = pathlib.Path(__file__).parents[2] / "docs" / "figures"
  figures.mkdir(parents=True, exist_ok=True)
  results = [compare(noise) for noise in TOLERANCE]
  for result in results:
    print(f"noise {result['noise_sd']}")
    for name, value in result.items():
      if isinstance(value, dict):
        print(" ", name, value)
  settings = {
    "tuning_seeds": TUNING_SEEDS,
    "seeds": SEEDS,
    "step_size": STEP_SIZE,
    "steps": STEPS,
    "noise_seeds": NOISE_SEEDS,
    "tolerances": list(TOLERANCE.items()),
    "integral_gains": INTEGRAL_GAINS,
    "proportional_gains": PROPORTIONAL_GAINS,
    "smoothings": SMOOTHINGS,
  }
  raw = json.dumps({"settings": settings, "results": results}, indent=1)
  (figures / "controllers_over_problems.json").write_text(raw + "\n")
  draw(results, figures / "controllers_over_problems.png")


if __name__ == "__main__":
  main()
