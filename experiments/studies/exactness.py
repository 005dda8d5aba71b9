"""Does training end at the exact optimum? Every method x policy x program, on random problems solved exactly.

Online policy gradient, trajectory balance and pairwise losses train a tabular policy and a tiny transformer while
`duals.pi_controller` learns the multipliers of the quality floor (QEMPO), of the KL budget too (QEMPO-KL), or of the
floor under a coherence constraint (QEMPO-C) of multiplier 1 or learned. Two tiers: "expected" trains on the exact mean of the loss over all groups of two responses, or all pairs, and measures
constraints exactly, so that what is left over is bias; "sampled" draws groups or pairs, and the measurements, afresh
at every step, and evaluates the mean of the last iterates. The decays of step sizes are those of any stochastic
approximation. Controls, which should miss the optimum, show that the criterion can tell.

Pairs are drawn half from the reference, half uniformly, and labelled by a Bradley-Terry model *of the reward, with
unit scale*. Then the pairwise loss is least where its margin is the difference of rewards on every pair, which is
pi ∝ q^(beta/alpha) exp(r/alpha) for every distribution of pairs that connects all responses; where the
better response always wins there is no such point. Pairs alone enforce no constraint: multipliers are either given
(exact) or learned from E_pi[r] and KL measured on fresh samples of the policy.

    python -m experiments.studies.exactness      # resumes; docs/figures/exactness.{json,png}

Settings were chosen on problems 0 to 9 (QEMPO-C's on 0 to 29), the ones reported are 100 to 109.
"""

import argparse
import functools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import exactness_figure
from experiments.studies.exactness_methods import COHERENT
from experiments.studies.exactness_methods import CONTROLS
from experiments.studies.exactness_methods import METHODS
from experiments.studies.exactness_methods import Method
from experiments.studies.exactness_methods import draw_responses
from experiments.studies.exactness_methods import enumerated_loss
from experiments.studies.exactness_methods import of_all_responses
from experiments.studies.exactness_methods import sampled_loss
from experiments.studies.exactness_problems import KINDS
from experiments.studies.exactness_problems import THRESHOLD
from experiments.studies.exactness_problems import Problem
from experiments.studies.exactness_problems import PromptedPolicy
from experiments.studies.exactness_problems import random_problems
from qempo_jax import coherent
from qempo_jax import duals

SEEDS = tuple(range(100, 110))
PROGRAMS = {  # constraints whose multipliers are learned
  "qempo": ("quality",),
  "qempo_kl": ("quality", "kl"),
  "qempo_c": ("quality",),
  "qempo_c, learned nu": ("quality", "coherence"),
}
TOLERANCES = {"entropy": 0.01, "reward": 0.01, "kl": 0.01, "coherence": 0.01}
RELATIVE = ("entropy", "quality_multiplier", "kl_multiplier", "coherence_multiplier")
TOLERANCES |= {name: 0.05 for name in RELATIVE[1:]}
ALL = METHODS | COHERENT | CONTROLS


class Settings(NamedTuple):
  """Of one training.

  Attributes:
    steps: updates of policy and multipliers.
    samples: drawn a prompt and step for the loss, and again for the measurements; 0 for exact means.
    learning_rate: of Adam, decayed by a cosine to 1 %.
    gains: proportional and integral gain of each multiplier, raised from 0 over the first fifth of the steps, then
      decayed by a cosine to 5 %. Those of pairs act on log lambda, since their loss divides by lambda.
    averaged: share of the last steps whose parameters and multipliers are averaged for the result.
    initial: multipliers at the start.
    smoothing: of the proportional part.
    cap: largest multiplier.
  """

  steps: int
  samples: int
  learning_rate: float
  gains: tuple[tuple[str, tuple[float, float]], ...]
  averaged: float
  initial: tuple[tuple[str, float], ...] = (("quality", 1.0), ("kl", 0.5))
  smoothing: float = 0.9
  cap: float = 5.0


GAINS = {
  ("expected", "group"): (("quality", (2.0, 0.05)), ("kl", (1.0, 0.05))),
  ("sampled", "group"): (("quality", (1.0, 0.02)), ("kl", (0.2, 0.02))),
  ("expected", "pair"): (("quality", (0.3, 0.02)), ("kl", (0.5, 0.03))),
  ("sampled", "pair"): (("quality", (0.3, 0.01)), ("kl", (0.2, 0.01))),
}
# Share of the steps over which a given coherence multiplier is raised from 0. Started at its value, transformers lose some acceptable
# responses early, and do not find them again.
COHERENCE_RISE = 0.6
COHERENCE_GAINS = {"table": (0.5, 0.06), "transformer": (0.2, 0.02)}
STEPS = {("expected", "table"): 3000, ("expected", "transformer"): 6000}
STEPS |= {("sampled", kind): 6000 for kind in KINDS}
SAMPLES = {"group": 128, "pair": 8192}  # pairs need more: a label is one noisy bit


def settings(tier: str, kind: str, method: Method) -> Settings:
  """The settings of one cell of the matrix: the same for every problem and both programs."""
  noisy_group = tier == "sampled" and method.inputs == "group"
  gains, initial = GAINS[tier, method.inputs], Settings._field_defaults["initial"]
  learning_rate, steps = {"table": 0.05, "transformer": 0.005}[kind], STEPS[tier, kind]
  if method in COHERENT.values():
    learning_rate = {"table": 0.05, "transformer": 0.002}[kind]
    steps = 12000 if tier == "expected" else steps
    gains, initial = (*gains, ("coherence", COHERENCE_GAINS[kind])), (*initial, ("coherence", 0.0))
  return Settings(
    steps=steps,
    samples=0 if tier == "expected" else SAMPLES[method.inputs],
    learning_rate=learning_rate,
    gains=gains,
    averaged=0.25 if noisy_group else 0.1,
    initial=initial,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def train(
  kind: str,
  program: str,
  method: Method,
  settings: Settings,
  problems: Problem,
  keys: jax.Array,
) -> dict[str, jax.Array]:
  """Trains one policy a problem, side by side; returns what each ends with, by name: [problems]."""
  policy = KINDS[kind]()
  one = lambda problem, key: _train_one(policy, program, method, settings, problem, key)
  return jax.vmap(one)(problems, keys)


def _train_one(
  policy: PromptedPolicy,
  program: str,
  method: Method,
  settings: Settings,
  problem: Problem,
  key: jax.Array,
) -> dict[str, jax.Array]:
  enforced = PROGRAMS[program]
  optimizer, controller = _optimizers(settings, enforced)
  linear_or_log = dict.fromkeys(enforced, "linear") | {"quality": "log" if method.inputs == "pair" else "linear"}
  dual_params = duals.init_dual_params(
    {name: dict(settings.initial)[name] for name in enforced}, parametrisation=linear_or_log
  )
  exact = {name: getattr(problem, f"{name}_multiplier") for name in ("quality", "kl", "coherence")}
  learned = lambda d: duals.multipliers(d) if method.learned else {}

  def multipliers_at(index, d):
    risen = jnp.minimum(1.0, index / (settings.steps * COHERENCE_RISE))
    return exact | {"coherence": risen * exact["coherence"]} | learned(d)

  start = int(settings.steps * (1 - settings.averaged))

  def loss_fn(params, multipliers, keys):
    responses = of_all_responses(policy, params, problem)
    sampled = functools.partial(sampled_loss, size=settings.samples)
    loss = sampled if settings.samples else enumerated_loss
    one = lambda *x: loss(method, *x[:-1], multipliers=multipliers, key=x[-1])
    return jnp.mean(jax.vmap(one)(responses, problem.data_log_probs, keys)), responses.log_probs

  def step(carry, index_and_key):
    params, opt_state, dual_params, dual_state, mean = carry
    index, key = index_and_key
    loss_keys, measure_keys = jax.random.split(key, (2, len(problem.rewards)))
    multipliers = multipliers_at(index, dual_params)
    gradient, log_probs = jax.grad(loss_fn, has_aux=True)(params, multipliers, loss_keys)
    updates, opt_state = optimizer.update(gradient, opt_state)
    params = optax.apply_updates(params, updates)

    measured = measure(log_probs, problem, measure_keys, settings.samples)
    constraints = {
      "quality": duals.at_least(measured["reward"], problem.min_reward),
      "kl": duals.at_most(measured["kl"], problem.max_kl),
      "coherence": duals.at_most(measured["coherence"], problem.max_coherence),
    }
    constraints = {name: constraints[name] for name in enforced}
    dual_loss = lambda d: duals.lagrangian_terms(d, constraints).dual_loss
    updates, dual_state = controller.update(jax.grad(dual_loss)(dual_params), dual_state, dual_params)
    dual_params = optax.apply_updates(dual_params, updates)

    share = 1 / jnp.maximum(index - start + 1, 1)  # 1 until averaging starts
    mean = jax.tree.map(lambda m, x: m + share * (x - m), mean, (params, multipliers))
    return (params, opt_state, dual_params, dual_state, mean), None

  states = optimizer.init(problem.params), dual_params, controller.init(dual_params)
  carry = problem.params, *states, (problem.params, multipliers_at(0, dual_params))
  steps = jnp.arange(settings.steps), jax.random.split(key, settings.steps)
  params, multipliers = jax.lax.scan(step, carry, steps)[0][-1]
  log_probs = jnp.sum(policy.token_log_probs(params), axis=-1)
  ends = measure(log_probs, problem, None, 0)
  return ends | {f"{name}_multiplier": value for name, value in multipliers.items()}


def _optimizers(settings: Settings, enforced: tuple[str, ...]):
  warmup, rest = settings.steps // 5, settings.steps - settings.steps // 5
  decay = optax.cosine_decay_schedule(settings.learning_rate, settings.steps, alpha=0.01)
  gain = optax.join_schedules(
    [optax.linear_schedule(0.0, 1.0, warmup), optax.cosine_decay_schedule(1.0, rest, alpha=0.05)],
    [warmup],
  )
  proportional, integral = (
    {name: gains[part] for name, gains in settings.gains if name in enforced} for part in (0, 1)
  )
  controller = duals.pi_controller(
    proportional_gain=proportional,
    integral_gain=integral,
    smoothing=settings.smoothing,
    cap=settings.cap,
  )
  return optax.adam(decay), optax.chain(optax.scale_by_schedule(gain), controller)


def measure(log_probs, problem: Problem, keys, samples: int) -> dict[str, jax.Array]:
  """Means over prompts of entropy, reward, KL and coherence of [P, N] log-probs: exact, or from `samples` draws a prompt."""
  k1 = log_probs - problem.ref_log_probs
  unlikely = coherent.gate(problem.rewards, threshold=THRESHOLD) * -problem.ref_log_probs
  if samples:
    index = jax.vmap(lambda key, log_p: draw_responses(key, log_p, samples))(keys, log_probs)
    mean = lambda values: jnp.mean(jnp.take_along_axis(values, index, axis=-1))
  else:
    mean = lambda values: jnp.mean(jnp.sum(jnp.exp(log_probs) * values, axis=-1))
  return {"entropy": mean(-log_probs), "reward": mean(problem.rewards), "kl": mean(k1), "coherence": mean(unlikely)}


def rows(tier: str, kind: str, program: str, name: str, seeds: tuple[int, ...]) -> list[dict]:
  """Trains one cell of the matrix; one row a problem: reached and exact values, errors, pass or not."""
  method, enforced = ALL[name], PROGRAMS[program]
  problems = random_problems(KINDS[kind](), program, seeds)
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  found = train(kind, program, method, settings(tier, kind, method), problems, keys)
  exact = {
    "entropy": problems.entropy,
    "reward": problems.min_reward,
    "kl": problems.max_kl,
    "coherence": problems.max_coherence,
    "quality_multiplier": problems.quality_multiplier,
    "kl_multiplier": problems.kl_multiplier,
    "coherence_multiplier": problems.coherence_multiplier,
  }
  checked = [
    "entropy",
    "reward",
    *enforced[1:],
    *(f"{constraint}_multiplier" for constraint in enforced if method.learned),
  ]
  found, exact = ({k: np.asarray(v, float) for k, v in x.items()} for x in (found, exact))
  table = []
  for i, seed in enumerate(seeds):
    error = {k: abs(found[k][i] - exact[k][i]) / (exact[k][i] if k in RELATIVE else 1) for k in checked}
    row = {"tier": tier, "policy": kind, "program": program, "method": name, "seed": seed}
    row |= {"found": {k: float(v[i]) for k, v in found.items()}}
    row |= {"exact": {k: float(exact[k][i]) for k in checked}}
    row |= {"error": {k: float(v) for k, v in error.items()}}
    table.append(row | {"passed": all(error[k] <= TOLERANCES[k] for k in checked)})
  return table


def cells() -> list[tuple[str, str, str, str]]:
  """(tier, policy, program, method) of the whole matrix; controls in the expected tier, on the table."""
  coherent_runs = [("qempo_c", name) for name in COHERENT] + [("qempo_c, learned nu", "QEMPO-C")]
  programs = ("qempo", "qempo_kl")
  matrix = [(t, k, p, m) for t, k in STEPS for p in programs for m in METHODS]
  matrix += [(t, k, *run) for t, k in STEPS for run in coherent_runs]
  return matrix + [("expected", "table", p, m) for p in programs for m in CONTROLS]


def main() -> None:
  """Runs the cells that the folder's JSON lacks, prints a line each, draws the figure."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  default = pathlib.Path(__file__).parents[2] / "docs" / "figures"
  parser.add_argument("--folder", type=pathlib.Path, default=default, help="of the JSON and the figure")
  path = parser.parse_args().folder / "exactness.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  done = json.loads(path.read_text())["cells"] if path.exists() else []
  for cell in cells():
    now = settings(cell[0], cell[1], ALL[cell[3]])
    key = json.loads(json.dumps({"cell": cell, "seeds": SEEDS, "settings": now._asdict()}))
    if any({k: old[k] for k in key} == key for old in done):
      continue
    began = time.perf_counter()
    table = rows(*cell, SEEDS)
    done = [old for old in done if old["cell"] != list(cell)]
    done.append(key | {"seconds": round(time.perf_counter() - began, 1), "rows": table})
    path.write_text(json.dumps({"tolerances": TOLERANCES, "cells": done}, indent=1) + "\n")
    worst = {k: max(row["error"][k] for row in table) for k in table[0]["error"]}
    passed = sum(row["passed"] for row in table)
    print(*cell, f"{passed}/{len(table)}", {k: float(f"{v:.2g}") for k, v in worst.items()}, flush=True)
  exactness_figure.draw(done, TOLERANCES, path.with_suffix(".png"))


if __name__ == "__main__":
  main()
