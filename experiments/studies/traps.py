"""Four traps of entropy under a quality floor, each measured on a problem small enough to solve exactly.

    python -m experiments.studies.traps     # about 70 CPU-seconds

Writes docs/figures/trap_{1,2,3,4}.png and traps.json. docs/traps.md describes them; `traps_drawing` draws them.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import traps_drawing
from experiments.studies import traps_offline
from qempo_jax import exact
from qempo_jax import family
from qempo_jax.testing import EnumerablePolicy


def random_responses(count: int, *, seed: int, ref_logit_sd: float) -> tuple[jax.Array, jax.Array]:
  """Returns Gaussian rewards and the log-probs of a reference with Gaussian logits, [count] each."""
  random = np.random.default_rng(seed)
  rewards, logits = random.normal(size=(2, count))
  return jnp.asarray(rewards), jax.nn.log_softmax(ref_logit_sd * jnp.asarray(logits))


def window_of_budgets() -> dict:
  """Trap 1: entropy and multipliers of QEMPO-KL from RLHF's KL at R to that of QEMPO."""
  min_reward = 1.0
  rewards, ref = random_responses(40, seed=0, ref_logit_sd=1.5)
  ends = exact.feasible_range(rewards, ref, min_reward=min_reward)
  rlhf = exact.solve_rlhf(rewards, ref, min_reward=min_reward)
  qempo = exact.solve_qempo(rewards, ref_log_probs=ref, min_reward=min_reward)
  solve = functools.partial(exact.solve_qempo_kl, rewards, ref, min_reward=min_reward)
  curve = [solve(kl_position=x) for x in np.linspace(0, 1, 41) ** 2]  # denser near RLHF
  slack = np.logspace(-7, -1, 13) * float(ends.qempo_kl - ends.min_kl)
  near = [solve(max_kl=float(ends.min_kl) + s) for s in slack]
  quality, kl = (np.array([float(getattr(x, name)) for x in near]) for name in
                 ("quality_multiplier", "kl_multiplier"))  # fmt: skip
  slope = lambda y: float(np.polyfit(np.log(slack[:7]), np.log(y[:7]), 1)[0])
  return {
    "min_reward": min_reward,
    "min_kl": float(ends.min_kl),
    "qempo_kl": float(ends.qempo_kl),
    "rlhf_entropy": float(rlhf.entropy),
    "qempo_entropy": float(qempo.entropy),
    "distance_from_rlhf_at_min_kl": float(jnp.abs(jnp.exp(curve[0].log_probs) - jnp.exp(rlhf.log_probs)).sum()),
    "budget": [float(x.kl) for x in curve],
    "entropy": [float(x.entropy) for x in curve],
    "slack": slack.tolist(),
    "quality_multiplier": quality.tolist(),
    "kl_multiplier": kl.tolist(),
    "slopes_near_min_kl": {"quality": slope(quality), "kl": slope(kl)},
  }


def order_of_entropies() -> dict:
  """Trap 2: both families of optima at matched temperature, and at matched expected reward."""
  rewards = jnp.array([1.0, 0.5, 0.0])
  ref = jnp.log(jnp.array([0.05, 0.25, 0.70]))
  entropy = lambda log_probs: float(-jnp.sum(jnp.exp(log_probs) * log_probs))
  mean = lambda log_probs: float(jnp.exp(log_probs) @ rewards)
  optimum = {
    "qempo": lambda t: family.target_log_probs(rewards, ref, alpha=t, beta=0.0),
    "rlhf": lambda t: family.target_log_probs(rewards, ref, alpha=t, beta=t),
  }
  temperatures = np.logspace(-1, 0.5, 46)
  floors = np.linspace(0.2, 0.98, 40)
  solve = {
    "qempo": lambda floor: exact.solve_qempo(rewards, min_reward=floor),
    "rlhf": lambda floor: exact.solve_rlhf(rewards, ref, min_reward=floor),
  }
  example = 0.5
  return {
    "temperature": temperatures.tolist(),
    "entropy_at_temperature": {n: [entropy(f(t)) for t in temperatures] for n, f in optimum.items()},
    "reward_at_temperature": {n: [mean(f(t)) for t in temperatures] for n, f in optimum.items()},
    "floor": floors.tolist(),
    "entropy_at_floor": {n: [float(f(x).entropy) for x in floors] for n, f in solve.items()},
    "example": {
      "temperature": example,
      "entropy": {n: entropy(f(example)) for n, f in optimum.items()},
      "reward": {n: mean(f(example)) for n, f in optimum.items()},
    },
  }


def counted_strings() -> dict:
  """Trap 3: entropy of QEMPO under a floor below 1, as bad strings grow in number and in length."""
  good, floor = 50, 0.9
  bad = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000]
  by_number = []
  for count in bad:
    acceptable = jnp.arange(good + count) < good
    solution = exact.solve_qempo(acceptable.astype(float), min_reward=floor)
    inside = jax.nn.log_softmax(solution.log_probs[:good])
    by_number.append(
      {
        "bad": count,
        "entropy": float(solution.entropy),
        "entropy_inside": float(-jnp.sum(jnp.exp(inside) * inside)),
        "mass_inside": float(jnp.sum(jnp.exp(solution.log_probs[:good]))),
      }
    )
  return {"good": good, "min_reward": floor, "by_number": by_number, "by_length": lengths()}


def lengths() -> list[dict]:
  """Mean lengths by cap for two words and EOS; acceptable are the strings of one or two words that begin with word 1."""
  rows = []
  for cap in range(3, 13):
    policy = EnumerablePolicy.table(vocab_size=3, max_length=cap)
    space = policy.space
    ended = ~space.truncated & (space.lengths <= 3) & (space.lengths >= 2)
    rewards = jnp.asarray(ended & (space.tokens[:, 0] == 1), float)
    half_eos = jnp.log(jnp.array([0.5, 0.25, 0.25]))  # the reference ends with probability 1/2 at every token
    ref = jnp.sum(jnp.where(space.mask, half_eos[space.tokens], 0.0), axis=-1)
    for floor in (0.9, 0.6):
      solutions = {
        "qempo": exact.solve_qempo(rewards, ref_log_probs=ref, min_reward=floor),
        "qempo_kl": exact.solve_qempo_kl(rewards, ref, min_reward=floor, kl_position=0.25),
      }
      for name, solution in solutions.items():
        params = space.table_logits(solution.log_probs)
        tokens = policy.length_distribution(params) @ jnp.arange(1, cap + 1)
        rows.append(
          {
            "method": name,
            "min_reward": floor,
            "cap": cap,
            "strings": space.num_sequences,
            "tokens": float(tokens),
            "truncated": float(policy.truncation_rate(params)),
            "entropy": float(policy.entropy(params)),
            "expected_reward": float(policy.expected(params, rewards)),
          }
        )
  return rows


def main() -> None:
  """Measures the four traps, prints the main figures, and writes the raw numbers and the drawings."""
  out = pathlib.Path(__file__).parents[2] / "docs" / "figures"
  with jax.enable_x64(True):
    results = {
      "1": window_of_budgets(),
      "2": order_of_entropies(),
      "3": counted_strings(),
      "4": traps_offline.offline_floor(*random_responses(24, seed=1, ref_logit_sd=0.5)),
    }
  (out / "traps.json").write_text(json.dumps(results) + "\n")
  traps_drawing.draw_all(results, out)
  for number, result in results.items():
    print(f"trap {number}: {json.dumps(_without_curves(result))}")


def _without_curves(tree):
  """The same results without lists of numbers."""
  if not isinstance(tree, dict):
    return tree
  kept = {k: _without_curves(v) for k, v in tree.items() if not isinstance(v, list)}
  return {k: v for k, v in kept.items() if v != {}}


if __name__ == "__main__":
  main()
