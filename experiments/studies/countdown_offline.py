"""Countdown offline: right answers found after training on one log of scored responses, by exact scoring of every right string.

  python -m experiments.studies.countdown_model runs/countdown_model
  python -m experiments.studies.countdown_offline runs/countdown_model docs/results/countdown_offline --seeds=0,1,2,3,4 [POINT ...]

A seed's log holds 128 responses of the reference to each of ten puzzles, right or wrong. Every method sees the same responses in
the same order: 5 puzzles x 32 responses an update, another quarter of each log at each pass. The updates are one `lax.scan`; a run
takes 7 to 20 CPU-seconds with one thread (XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"). Every
run writes POINT-seedN.json as it ends; what is there is kept. `countdown_offline_tables` chooses the rates and makes the tables.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import countdown_policy
from qempo_jax import losses
from qempo_jax import offline_losses
from qempo_jax.data import scored
from qempo_jax.family import Weights
from qempo_jax.offline_losses import Example
from qempo_jax.offline_losses import ListWeights

LOGGED, PART, PROMPTS, LENGTH = 128, 32, countdown_policy.PROMPTS, countdown_policy.LENGTH
STEPS, EVERY, FLOOR = 200, 25, 0.85
RATES = ((3e-5, "3e-5"), (1e-4, "1e-4"), (3e-4, "3e-4"), (1e-3, "1e-3"))


@dataclasses.dataclass(frozen=True)
class Point:
  """One method with its settings.

  Attributes:
    loss: "listwise", "regression", or "pairs": the mean DPO loss of every right response against every wrong one.
    even: True weighs right responses by `losses.even_weights`, False as they were drawn.
    pair_weight: of listwise's pair terms.
    beta: entropy and reference weight of the pair loss, reward units per nat.
    learning_rate: AdamW's at the start; it falls linearly to a tenth.
  """

  loss: str
  even: bool
  pair_weight: float
  beta: float
  learning_rate: float


def points() -> dict[str, Point]:
  """Every point by name, the methods on one grid of learning rates."""
  methods = {
    "dpo_beta0.1": ("pairs", False, 0.0, 0.1),
    "dpo_beta0.5": ("pairs", False, 0.0, 0.5),
    "dpo_beta0.5_even": ("pairs", True, 0.0, 0.5),
    "sft": ("listwise", False, 0.0, 0.5),
    "sft_pairs": ("listwise", False, 2.0, 0.5),
    "sft_even": ("listwise", True, 0.0, 0.5),
    "listwise": ("listwise", True, 2.0, 0.5),
    "regression": ("regression", True, 0.0, 0.5),
  }
  return {f"{name}_{text}": Point(*settings, rate) for name, settings in methods.items() for rate, text in RATES}


class Log(NamedTuple):
  """Scored responses of the reference to the P puzzles that are trained on.

  Attributes:
    prompts: [P, L] padded on the left.
    prompt_mask: [P, L].
    tokens: [P, N, T].
    mask: [P, N, T].
    right: [P, N].
    ref_log_probs: [P, N] nats.
    lists: of [P, N].
  """

  prompts: jax.Array
  prompt_mask: jax.Array
  tokens: jax.Array
  mask: jax.Array
  right: jax.Array
  ref_log_probs: jax.Array
  lists: ListWeights


def make_log(seed: int, config, reference, stop: int, puzzles: countdown_policy.Puzzles) -> Log:
  """Samples the reference at temperature 1, and weighs right answers alike."""
  own = np.array(puzzles.splits["train"])
  prompts, prompt_mask = jnp.asarray(puzzles.prompts[own]), jnp.asarray(puzzles.mask[own])
  noise = jax.random.gumbel(jax.random.key(seed), (LENGTH, len(own), LOGGED, config.vocab_size))
  tokens = jax.jit(countdown_policy.draw, static_argnums=1)(reference, config, prompts, prompt_mask, 1.0, noise)
  mask = jnp.cumsum(tokens == stop, axis=-1) - (tokens == stop) == 0
  tokens = jnp.where(mask, tokens, 0)
  owner = jnp.repeat(jnp.arange(len(own)), LOGGED)
  stats = jax.jit(countdown_policy.score, static_argnums=1)(
    reference, config, prompts, prompt_mask, owner, tokens.reshape(-1, LENGTH)
  )
  log_probs = jnp.sum(jnp.where(mask, stats.log_prob.reshape(mask.shape), 0.0), axis=-1)
  codes = np.asarray(countdown_policy.code(tokens, mask))
  strings = np.asarray(countdown_policy.code(puzzles.strings, np.arange(LENGTH) < puzzles.lengths[:, None]))
  known = dict(zip(zip(puzzles.puzzle.tolist(), strings.tolist(), strict=True), puzzles.solution.tolist(), strict=True))
  answers = np.array([[known.get((int(p), int(c)), -1) for c in row] for p, row in zip(own, codes, strict=True)])
  weights = [scored.list_weights(row >= 0, row, texts) for row, texts in zip(answers, codes, strict=True)]
  lists = ListWeights(*(jnp.asarray(np.stack(column), jnp.float32) for column in zip(*weights, strict=True)))
  return Log(prompts, prompt_mask, tokens, mask, jnp.asarray(answers >= 0), log_probs, lists)


def loss(kind: str, example: Example, pair_weight, beta) -> jax.Array:
  """The loss of one puzzle's responses."""
  if kind != "pairs":
    settings = offline_losses.LossSettings(0.0, 0.0, 1.0, 1.0, 0.0, pair_weight=pair_weight, min_reward=FLOOR)
    return offline_losses.example_loss(kind, example, Weights(beta, beta), settings)
  one = functools.partial(losses.dpo_loss, beta=beta)
  matrix = jax.vmap(jax.vmap(one, (None, 0, None, 0)), (0, None, 0, None))
  pi, q, (chosen, rejected) = example.log_probs, example.ref_log_probs, example.sides
  return chosen @ matrix(pi, pi, q, q) @ rejected


@functools.cache
def program(kind: str, config, steps: int):
  """(parameters and optimizer state, first step, key, log, rate, pair weight, beta) -> EVERY updates."""
  parts = LOGGED // PART

  def step(carry, index, key, log, rate, pair_weight, beta):
    round_, half = index // 2, index % 2
    shuffled = jax.random.permutation(jax.random.fold_in(key, round_), len(log.prompts))
    rows = jax.lax.dynamic_slice_in_dim(shuffled, half * PROMPTS, PROMPTS)
    # A part has as many of a puzzle's right responses as any other, and as many of the wrong ones.
    noise = jax.random.uniform(jax.random.fold_in(key, steps + round_ // parts), log.right.shape)
    places = jnp.argsort(noise + 2 * ~log.right, axis=1)[rows][:, round_ % parts + parts * jnp.arange(PART)]
    of_part = lambda x: jnp.take_along_axis(x[rows], places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
    tokens, mask, ref_log_probs = of_part(log.tokens), of_part(log.mask), of_part(log.ref_log_probs)
    lists = jax.tree.map(of_part, log.lists)
    lists = lists._replace(chosen=parts * lists.chosen, rejected=parts * lists.rejected)
    owner = jnp.repeat(jnp.arange(PROMPTS), PART)

    def mean_loss(params):
      arguments = log.prompts[rows], log.prompt_mask[rows], owner, tokens.reshape(-1, LENGTH)
      log_probs = countdown_policy.score(params, config, *arguments).log_prob.reshape(mask.shape)
      examples = Example(log_probs, mask, ref_log_probs, jnp.zeros(PROMPTS), lists)
      return jnp.mean(jax.vmap(lambda example: loss(kind, example, pair_weight, beta))(examples))

    value, gradient = jax.value_and_grad(mean_loss)(carry[0])
    updates, state = countdown_policy.optimizer(rate, steps).update(gradient, carry[1], carry[0])
    return (optax.apply_updates(carry[0], updates), state), value

  def run(carry, first, *arguments):
    return jax.lax.scan(lambda carry, index: step(carry, index, *arguments), carry, first + jnp.arange(EVERY))

  return jax.jit(run)


def train(point: Point, seed: int, config, reference, log: Log, steps: int, evaluate) -> list[dict]:
  """The exact figures along one run."""
  if not point.even:
    drawn = log.right / jnp.maximum(1, jnp.sum(log.right, axis=1, keepdims=True))
    log = log._replace(lists=log.lists._replace(chosen=drawn))
  compiled, carry = (
    program(point.loss, config, steps),
    (reference, countdown_policy.optimizer(point.learning_rate, steps).init(reference)),
  )
  numbers = tuple(map(jnp.float32, (point.learning_rate, point.pair_weight, point.beta)))
  found = [{"step": 0} | evaluate(reference)]
  for first in range(0, steps, EVERY):
    carry, values = compiled(carry, first, jax.random.key(1000 + seed), log, *numbers)
    found.append({"step": first + EVERY, "loss": float(f"{values.mean():.4g}")} | evaluate(carry[0]))
  return found


def main() -> None:
  """Makes the runs that are not there yet."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("model", help="folder of the reference, by experiments.studies.countdown_model")
  parser.add_argument("out", type=pathlib.Path, help="folder of the results")
  parser.add_argument("names", nargs="*", help=f"points; none for all of {', '.join(points())}")
  parser.add_argument("--seeds", default="0,1,2,3,4")
  parser.add_argument("--steps", type=int, default=STEPS)
  arguments = parser.parse_intermixed_args()
  arguments.out.mkdir(parents=True, exist_ok=True)
  config, reference, stop, puzzles = countdown_policy.load(arguments.model)
  evaluate = countdown_policy.evaluator(config, puzzles)
  for seed in map(int, arguments.seeds.split(",")):
    log = make_log(seed, config, reference, stop, puzzles)
    for name in arguments.names or points():
      path = arguments.out / f"{name}-seed{seed}.json"
      if path.exists():
        continue
      started = time.process_time()
      rows = train(points()[name], seed, config, reference, log, arguments.steps, evaluate)
      result = {"point": dataclasses.asdict(points()[name]), "seed": seed, "steps": arguments.steps, "rows": rows}
      result |= {"cpu_seconds": round(time.process_time() - started, 1)}
      path.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
      show = lambda row, split: f"{split} {np.mean(row['right'][split]):.3f} / {np.mean(row['distinct'][split]):.2f}"
      print(
        name, seed, f"{result['cpu_seconds']} CPU-s", *(show(rows[-1], s) for s in countdown_policy.SPLITS), flush=True
      )


if __name__ == "__main__":
  main()
