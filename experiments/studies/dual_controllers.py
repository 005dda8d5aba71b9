"""Speed and overshoot of the quality multiplier's controllers on an enumerable policy.

A tabular policy over 64 responses with Gaussian rewards climbs the QEMPO Lagrangian with exact gradients. Its
multiplier follows plain dual ascent, the library's PI controller, or the PI controller in velocity form, with and
without noise (sd 0.2) on the measured reward. The velocity form shows why the library does not use it.

    python -m experiments.studies.dual_controllers          # 20 s on 2 cores; docs/figures/dual_controllers.{png,json}
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qempo_jax import duals
from qempo_jax import exact

REWARDS = np.random.default_rng(3).normal(size=64).astype(np.float32)
MIN_REWARD = 0.3
STEP_SIZE = 0.25
STEPS = 2500
NOISE = 0.2
SEEDS = 8
EVERY = 5  # steps between the points of the stored curves (those of the first seed)
TOLERANCE = {0.0: 0.05, NOISE: 0.1}  # settled: within this of the floor, for good
GAINS = {"proportional_gain": 5.0, "integral_gain": 0.03, "smoothing": 0.8}


def velocity_pi(*, proportional_gain: float, integral_gain: float, smoothing: float) -> optax.GradientTransformation:
  """The PI controller in velocity form, m <- clip(m + k_i e + k_p (change of the average of e)), with first average 0."""

  def update(gradients, state, dual_params=None):
    del dual_params
    count, average, last = state
    average = jax.tree.map(lambda mean, g: smoothing * mean - (1 - smoothing) * g, average, gradients)
    error = jax.tree.map(lambda mean: mean / (1 - smoothing ** (count + 1)), average)
    change = lambda g, new, old: -integral_gain * g + proportional_gain * (new - old)
    return jax.tree.map(change, gradients, error, last), (count + 1, average, error)

  def init(dual_params):
    zeros = jax.tree.map(jnp.zeros_like, dual_params)
    return jnp.zeros((), jnp.int32), zeros, zeros

  return optax.chain(optax.GradientTransformation(init, update), duals.project_multipliers())


CONTROLLERS = {
  "plain ascent": duals.plain_ascent(GAINS["integral_gain"]),
  "PI": duals.pi_controller(**GAINS),
  "PI, velocity form": velocity_pi(**GAINS),
}


def ascent(controller: optax.GradientTransformation, rewards: jax.Array, floor: jax.Array | float):
  """Single-loop ascent of the QEMPO Lagrangian of free logits by exact gradients, for [P, N] rewards and one multiplier.

  Returns:
    (first carry, step: (carry, error of the measured reward) -> (carry, (true expected reward, multiplier) before it)).
  """

  def loss(logits, dual_params, error):
    log_probs = jax.nn.log_softmax(logits)
    mean = lambda values: jnp.mean(jnp.sum(jnp.exp(log_probs) * values, axis=-1))
    reward = mean(rewards)
    constraints = {"quality": duals.at_least(reward + error, floor)}
    terms = duals.lagrangian_terms(dual_params, constraints)
    primal = (mean(log_probs) + terms.penalty) / duals.step_divisor(dual_params, constraints)
    # The mean over prompts divides each prompt's gradient by their number; the factor undoes that.
    return len(rewards) * primal + terms.dual_loss, reward

  def step(carry, error):
    logits, dual_params, state = carry
    gradients, reward = jax.grad(loss, argnums=(0, 1), has_aux=True)(logits, dual_params, error)
    updates, state = controller.update(gradients[1], state, dual_params)
    next_carry = logits - STEP_SIZE * gradients[0], optax.apply_updates(dual_params, updates), state
    return next_carry, (reward, duals.multipliers(dual_params)["quality"])

  dual_params = duals.init_dual_params({"quality": 0.0})
  return (jnp.zeros_like(rewards), dual_params, controller.init(dual_params)), step


@functools.partial(jax.jit, static_argnames="controller")
def simulate(controller: optax.GradientTransformation, noise: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the true expected reward and the multiplier before each of STEPS single-loop updates."""
  start, step = ascent(controller, jnp.asarray(REWARDS)[None], MIN_REWARD)
  return jax.lax.scan(step, start, noise * jax.random.normal(key, (STEPS,)))[1]


def overshoot_and_settling(mean_rewards: np.ndarray, tolerance: float) -> tuple[float, int]:
  """Returns the largest excess over the floor, and the first step from which it stays within the tolerance."""
  outside = np.nonzero(np.abs(mean_rewards - MIN_REWARD) > tolerance)[0]
  return max(0.0, float(mean_rewards.max() - MIN_REWARD)), int(outside[-1]) + 1 if outside.size else 0


def measure(name: str, noise: float) -> dict:
  """Returns the curves and the figures of one controller, averaged over seeds if there is noise."""
  runs = [simulate(CONTROLLERS[name], noise, jax.random.key(seed)) for seed in range(SEEDS if noise else 1)]
  rewards, multipliers = (np.stack([np.asarray(run[part]) for run in runs]) for part in (0, 1))
  overshoot, settled = np.mean([overshoot_and_settling(run, TOLERANCE[noise]) for run in rewards], axis=0)
  return {
    "controller": name,
    "noise_sd": noise,
    "overshoot": float(overshoot),
    "settled_at_step": float(settled),
    "final_reward": float(rewards[:, -500:].mean()),
    "final_multiplier_sd": float(multipliers[:, -500:].std(axis=1).mean()),
    "expected_reward": np.round(rewards[0, ::EVERY], 4).tolist(),
    "multiplier": np.round(multipliers[0, ::EVERY], 4).tolist(),
  }


def draw(results: list[dict], exact_multiplier: float, path: pathlib.Path) -> None:
  """Plots expected reward and multiplier over the steps, one column per noise level."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  steps = np.arange(0, STEPS, EVERY)
  figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, sharey="row", layout="constrained")
  for column, noise in enumerate(TOLERANCE):
    for result in (result for result in results if result["noise_sd"] == noise):
      label = f"{result['controller']}: overshoot {result['overshoot']:.2f}, settled {result['settled_at_step']:.0f}"
      axes[0, column].plot(steps, result["expected_reward"], label=label, linewidth=1)
      axes[1, column].plot(steps, result["multiplier"], linewidth=1)
    axes[0, column].axhline(MIN_REWARD, color="black", linewidth=0.5)
    axes[1, column].axhline(exact_multiplier, color="black", linewidth=0.5)
    axes[0, column].set_title(f"reward noise sd {noise:g}; settled: within {TOLERANCE[noise]:g} of the floor")
    axes[0, column].legend(fontsize=8)
    axes[1, column].set_xlabel("step")
  axes[0, 0].set_ylabel("expected reward (floor: black)")
  axes[1, 0].set_ylabel("multiplier (exact: black)")
  axes[0, 0].set_xlim(0, 1000)
  figure.savefig(path, dpi=120)


def main() -> None:
  """Measures every controller at every noise level, prints the figures, and writes the plot."""
  figures = pathlib.Path(__file__).parents[2] / "docs" / "figures"
  figures.mkdir(parents=True, exist_ok=True)
  exact_multiplier = float(exact.solve_qempo(REWARDS, min_reward=MIN_REWARD).quality_multiplier)
  results = [measure(name, noise) for noise in TOLERANCE for name in CONTROLLERS]
  for result in results:
    print(*(f"{key} {value}" for key, value in result.items() if not isinstance(value, list)), sep=", ")
  settings = {
    "min_reward": MIN_REWARD,
    "step_size": STEP_SIZE,
    "steps": STEPS,
    "seeds": SEEDS,
    **GAINS,
  }
  raw = {
    "settings": settings | {"curve_every": EVERY},
    "exact_multiplier": exact_multiplier,
    "results": results,
  }
  (figures / "dual_controllers.json").write_text(json.dumps(raw) + "\n")
  draw(results, exact_multiplier, figures / "dual_controllers.png")


if __name__ == "__main__":
  main()
