"""Countdown, 600 updates of a small model: right answers found by each method, by exact scoring of every right string.

  python -m experiments.studies.countdown_model runs/countdown_model
  python -m experiments.studies.countdown_claim runs/countdown_model docs/results/countdown_claim --seeds=0,1,2 [POINT ...]

Sampling, reward, update and multipliers are one `lax.scan`, so that a run of 600 updates of 5 puzzles x 32 samples takes
about 40 CPU-seconds with one thread (XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"). No
method replays. A run writes POINT-seedN.json, and its state beside the model, every --round updates, and is taken up
there. Right strings are enumerated and scored, so evaluation has no sampling noise; at the end of each round it is repeated
with logits divided by each of `TEMPERATURES`.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.countdown_policy import LENGTH
from experiments.studies.countdown_policy import PROMPTS
from experiments.studies.countdown_policy import Puzzles
from experiments.studies.countdown_policy import code
from experiments.studies.countdown_policy import draw
from experiments.studies.countdown_policy import evaluator
from experiments.studies.countdown_policy import load
from experiments.studies.countdown_policy import optimizer
from experiments.studies.countdown_policy import score
from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import methods
from qempo_jax.train import online_step
from qempo_jax.train import state as train_state
from qempo_jax.train.step import dual_step
from qempo_jax.train.step import policy_step

GROUP, STEPS, EVERY = 32, 600, 50
TEMPERATURES = (0.7, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.2, 1.4)
ENTROPIES = (3.0, 4.0)  # targets of the points that hold entropy, nats a response


@dataclasses.dataclass(frozen=True)
class Point:
  """One method with its settings.

  Attributes:
    method: as in config.method.
    learning_rate: AdamW's at the start; it falls linearly to a tenth.
    floor: of the reward; None fixes the quality multiplier at `start`.
    start: quality multiplier at the start, nats; None takes the method's.
    parametrisation: of the quality multiplier.
    temperature: of the training samples; scores are at temperature 1.
    entropy: target of the response entropy, nats, held by a floor and a budget; None for none.
  """

  method: str
  learning_rate: float
  floor: float | None = None
  start: float | None = None
  parametrisation: str = "linear"
  temperature: float = 1.0
  entropy: float | None = None


def points() -> dict[str, Point]:
  """Every point of the sweep by name: the methods on one grid of learning rates."""
  found = {}
  for rate, text in ((1e-4, "1e-4"), (3e-4, "3e-4")):
    for beta in (0.04, 0.125, 0.25):
      found[f"grpo_beta{beta:g}_{text}"] = Point(f"grpo(beta={beta:g})", rate)
    for tau in (0.5, 1.0):
      found[f"ucpo_tau{tau:g}_{text}"] = Point(f"ucpo(tau={tau:g})", rate)
    for quality in (2.0, 4.0, 8.0):
      found[f"mara_{quality:g}_{text}"] = Point(f"mara(beta={1 / quality:g})", rate)
      found[f"qempo_c_fixed{quality:g}_{text}"] = Point("qempo_c", rate, start=quality)
    found[f"maxrl_{text}"] = Point("maxrl", rate)
    found[f"darling_{text}"] = Point("darling(beta=0.04)", rate)
    found[f"repo_{text}"] = Point("repo(share=1.0)", rate)
    for target in ENTROPIES:
      found[f"entropy{target:g}_{text}"] = Point("grpo(beta=0.0)", rate, entropy=target)
    found[f"qempo_{text}"] = Point("qempo", rate, floor=0.85, start=25.0, parametrisation="log")
    found[f"qempo_c_{text}"] = Point("qempo_c", rate, floor=0.85, start=2.0)
    found[f"qempo_loose_{text}"] = Point("qempo", rate, floor=0.4, start=2.0)
    found[f"qempo_c_loose_{text}"] = Point("qempo_c", rate, floor=0.4, start=2.0)
    found[f"qempo_c_fixed4_hot_{text}"] = Point("qempo_c", rate, start=4.0, temperature=1.2)
    found[f"ucpo_tau0.5_hot_{text}"] = Point("ucpo(tau=0.5)", rate, temperature=1.2)
    found[f"grpo_beta0.25_hot_{text}"] = Point("grpo(beta=0.25)", rate, temperature=1.2)
  return found


class Trained(NamedTuple):
  """Puzzles on the device: `Puzzles.prompts`, `mask` and `codes`, and those that are trained on."""

  prompts: jax.Array
  mask: jax.Array
  codes: jax.Array
  trained: jax.Array


def bounds_of(point: Point) -> dict[str, constraints.Constraint]:
  """The constraints of a point by name; those without a bound have a fixed multiplier."""
  found = {"quality": constraints.reward_floor("reward", point.floor), "kl": constraints.kl_budget(None)}
  if "coherence" in methods.resolve(point.method).multipliers:
    found["coherence"] = constraints.coherence_budget(None, 1.0)
  if point.entropy is not None:
    found["entropy"] = constraints.entropy_floor(point.entropy)
    found["entropy_budget"] = constraints.entropy_budget(point.entropy)
  return found


def optimizers_of(point: Point, rate, steps: int) -> online_step.Optimizers:
  """AdamW whose rate falls linearly to a tenth, and the integral controller of the multipliers."""
  gain = 0.05 if point.parametrisation == "linear" else 0.03
  gains = {name: gain for name in bounds_of(point)} | {"entropy": 0.01, "entropy_budget": 0.01}
  controller = duals.pi_controller(proportional_gain=0.0, integral_gain=gains, smoothing=0.7, cap=1000.0)
  return online_step.Optimizers(optimizer(rate, steps), controller)


def start(point: Point, seed: int, reference, steps: int) -> train_state.TrainState:
  """The state before the first update."""
  bounds, method = bounds_of(point), methods.resolve(point.method)
  starts = {name: 0.0 for name in bounds} | {"quality": 1.0} | dict(method.multipliers)
  starts |= {} if point.start is None else {"quality": point.start}
  dual_params = duals.init_dual_params(
    starts, parametrisation={name: "linear" for name in starts} | {"quality": point.parametrisation}
  )
  tools = optimizers_of(point, point.learning_rate, steps)
  state = train_state.create(
    jax.tree.map(jnp.copy, reference),
    dual_params,
    jax.random.key(seed),
    optimizer=tools.policy,
    dual_optimizer=tools.dual,
  )
  return jax.device_put(state, jax.devices()[0])


@functools.cache
def program(point: Point, config, stop: int, steps: int):
  """(state, first step, learning rate, temperature, reference, puzzles) -> EVERY updates; any seed, rate and temperature."""
  method, bounds = methods.resolve(point.method), bounds_of(point)

  def step(state, index, rate, temperature, reference, puzzles):
    tools = optimizers_of(point, rate, steps)
    prices = methods.Prices(method.entropy_weight, duals.multipliers(state.dual_params))
    rng = jax.random.fold_in(state.rng, index)
    shuffled = jax.random.permutation(jax.random.fold_in(state.rng, steps + index // 2), puzzles.trained)
    rows = jax.lax.dynamic_slice_in_dim(shuffled, (index % 2) * PROMPTS, PROMPTS)
    own, prompts, mask = puzzles.codes[rows], puzzles.prompts[rows], puzzles.mask[rows]
    noise = jax.random.gumbel(rng, (LENGTH, PROMPTS, GROUP, config.vocab_size))
    tokens = draw(state.params, config, prompts, mask, temperature, noise)
    alive = jnp.cumsum(tokens == stop, axis=-1) - (tokens == stop) == 0
    tokens = jnp.where(alive, tokens, 0)
    found = code(tokens, alive)
    place = jax.vmap(jnp.searchsorted)(own, found)
    right = jnp.take_along_axis(own, jnp.minimum(place, own.shape[1] - 1), axis=1) == found
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1)

    # Equal responses are scored once, in the smallest of three programs that has room for the different ones.
    flat, owner = tokens.reshape(-1, LENGTH), jnp.repeat(jnp.arange(PROMPTS), GROUP)
    _, first, inverse = jnp.unique(
      jnp.concatenate([owner[:, None], flat], axis=1), axis=0, size=len(owner), return_index=True, return_inverse=True
    )

    def update(size):
      def scored(params):
        stats = score(params, config, prompts, mask, owner[first[:size]], flat[first[:size]])
        return jax.tree.map(lambda x: jnp.where(alive, x[inverse].reshape(tokens.shape), 0.0), stats)

      def branch(state):
        group = constraints.Group.on_policy(
          {"reward": right.astype(jnp.float32)}, alive, jnp.sum(scored(reference).log_prob, axis=-1)
        ).replace(features={"similarities": same.astype(jnp.float32)})
        one = lambda stats, group: methods.group_loss(stats, group, prices, bounds, method, replay_weight=0.0)
        moved, stats, _ = policy_step(
          state,
          (),
          score=lambda params, _: scored(params),
          loss=lambda stats, _: jax.vmap(one)(stats, group) / PROMPTS,
          optimizer=tools.policy,
        )
        return moved, *online_step.measure(stats, group, bounds)

      return branch

    sizes = (64, 96, len(owner))
    choice = jnp.searchsorted(jnp.asarray(sizes), jnp.max(inverse) + 1)
    moved, measured, values = jax.lax.switch(choice, list(map(update, sizes)), state)
    state, metrics = dual_step(moved, measured | values, constraints=bounds, controller=tools.dual)
    multipliers = {name: value for name, value in metrics.items() if name.endswith("/multiplier")}
    kept = {name: measured[name] for name in ("reward", "entropy", "kl", "length")} | multipliers
    return state, kept | {"different": jnp.max(inverse) + 1.0}

  def run(state, first, *arguments):
    return jax.lax.scan(lambda state, index: step(state, index, *arguments), state, first + jnp.arange(EVERY))

  return jax.jit(run, donate_argnums=0)


class Run:
  """One run that can be advanced, left and taken up again; its state lies beside the model, its figures in `path`."""

  def __init__(self, point: Point, seed: int, reference, steps: int, path: pathlib.Path, states: pathlib.Path):
    """Resumes from `path` and the state file, or starts."""
    self.point, self.seed, self.steps, self.path = point, seed, steps, path
    self.saved = states / f"{path.stem}.npz"
    self.state, self.rows, self.seconds = start(point, seed, reference, steps), [], 0.0
    if path.exists() and self.saved.exists():
      result = json.loads(path.read_text(encoding="utf-8"))
      self.rows, self.seconds = result["rows"], result["cpu_seconds"]
      with np.load(self.saved) as stored:
        leaves = [stored[str(index)] for index in range(len(stored))]
      fresh, tree = jax.tree.flatten(self.state.replace(rng=jax.random.key_data(self.state.rng)))
      state = tree.unflatten([jnp.asarray(leaf, old.dtype) for leaf, old in zip(leaves, fresh, strict=True)])
      self.state = jax.device_put(state.replace(rng=jax.random.wrap_key_data(state.rng)), jax.devices()[0])

  def advance(self, until: int, config, reference, stop: int, puzzles: Puzzles, evaluate) -> None:
    """Trains up to that update and writes figures and state."""
    started = time.process_time()
    self.rows = self.rows or [{"step": 0} | evaluate(self.state.params)]
    general = dataclasses.replace(self.point, learning_rate=0.0, temperature=1.0)
    compiled = program(general, config, stop, self.steps)
    chosen = Trained(*map(jnp.asarray, (puzzles.prompts, puzzles.mask, puzzles.codes, puzzles.splits["train"])))
    arguments = (jnp.float32(self.point.learning_rate), jnp.float32(self.point.temperature), reference, chosen)
    for first in range(self.rows[-1]["step"], until, EVERY):
      self.state, metrics = compiled(self.state, first, *arguments)
      measured = {name: float(f"{values[-10:].mean():.4g}") for name, values in metrics.items()}
      self.rows.append({"step": first + EVERY, "measured": measured} | evaluate(self.state.params))
    for row in self.rows:
      row.pop("temperatures", None)
    self.rows[-1]["temperatures"] = {str(t): evaluate(self.state.params, t) for t in TEMPERATURES}
    self.seconds += time.process_time() - started
    leaves = jax.tree.leaves(self.state.replace(rng=jax.random.key_data(self.state.rng)))
    np.savez(self.saved, **{str(index): np.asarray(leaf) for index, leaf in enumerate(leaves)})
    result = {"point": dataclasses.asdict(self.point), "seed": self.seed, "steps": self.steps}
    result |= {"cpu_seconds": round(self.seconds, 1), "rows": self.rows}
    self.path.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(self.path.stem, until, f"{self.seconds:.0f} CPU-s", *(
      f"{split} {np.mean(self.rows[-1]['right'][split]):.3f} / {np.mean(self.rows[-1]['distinct'][split]):.2f}"
      for split in ("train", "heldout")
    ), flush=True)  # fmt: skip


def main() -> None:
  """Advances the runs side by side, so that at any time they have come about equally far."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("model", help="folder of the reference, by experiments.studies.countdown_model")
  parser.add_argument("out", type=pathlib.Path, help="folder of the results")
  parser.add_argument("names", nargs="*", help=f"points; none for all of {', '.join(points())}")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--steps", type=int, default=STEPS, help="updates that the learning rate is made for")
  parser.add_argument("--until", type=int, default=STEPS, help="updates to come to now")
  parser.add_argument("--round", type=int, default=STEPS, help="updates of one run before the next has its turn")
  arguments = parser.parse_intermixed_args()
  states = pathlib.Path(arguments.model).parent / "countdown_claim"
  for folder in (arguments.out, states):
    folder.mkdir(parents=True, exist_ok=True)
  config, reference, stop, puzzles = load(arguments.model)
  evaluate = evaluator(config, puzzles)
  for until in range(arguments.round, arguments.until + 1, arguments.round):
    for seed, name in itertools.product(map(int, arguments.seeds.split(",")), arguments.names or points()):
      path = arguments.out / f"{name}-seed{seed}.json"
      run = Run(points()[name], seed, reference, arguments.steps, path, states)
      done = bool(run.rows) and run.rows[-1]["step"] >= until
      if not done or len(run.rows[-1].get("temperatures", TEMPERATURES)) < len(TEMPERATURES):
        run.advance(until, config, reference, stop, puzzles, evaluate)


if __name__ == "__main__":
  main()
