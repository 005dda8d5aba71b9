"""Countdown, 600 updates of a small model: right answers found by each method, by exact scoring of every right string.

  python -m experiments.studies.countdown_model runs/countdown_model
  python -m experiments.studies.countdown_claim runs/countdown_model docs/results/countdown_claim --seeds=0,1,2 [POINT ...]

Sampling, reward, update and multipliers are one `lax.scan`, so that a run of 600 updates of 5 puzzles x 32 samples takes
about two minutes on one core. No method replays. Every run writes POINT-seedN.json as it ends; what is there is kept.
Right strings are enumerated and scored, so evaluation has no sampling noise.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import methods
from qempo_jax import token_stats
from qempo_jax.data import tokenization
from qempo_jax.models import conversion
from qempo_jax.models import transformer
from qempo_jax.rewards import countdown
from qempo_jax.sampling import sampler
from qempo_jax.train import online_step
from qempo_jax.train import optimizers
from qempo_jax.train import state as train_state
from qempo_jax.types import PromptBatch

PROMPTS, GROUP, LENGTH = 5, 32, 8
SPLITS = ("train", "validation", "heldout")
STEPS, EVERY = 600, 50


@dataclasses.dataclass(frozen=True)
class Point:
  """One method with its settings.

  Attributes:
    method: as in config.method.
    learning_rate: AdamW's at the start; it falls linearly to a tenth.
    floor: of the reward; None fixes the quality multiplier at `start`.
    start: quality multiplier at the start, nats; None takes the method's.
    parametrisation: of the quality multiplier.
    temperature: of the training samples; scores are at 1 whatever it is.
  """

  method: str
  learning_rate: float
  floor: float | None = None
  start: float | None = None
  parametrisation: str = "linear"
  temperature: float = 1.0


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
    found[f"qempo_{text}"] = Point("qempo", rate, floor=0.85, start=25.0, parametrisation="log")
    found[f"qempo_c_{text}"] = Point("qempo_c", rate, floor=0.85, start=2.0)
    found[f"qempo_c_fixed4_hot_{text}"] = Point("qempo_c", rate, start=4.0, temperature=1.2)
    found[f"ucpo_tau0.5_hot_{text}"] = Point("ucpo(tau=0.5)", rate, temperature=1.2)
    found[f"grpo_beta0.25_hot_{text}"] = Point("grpo(beta=0.25)", rate, temperature=1.2)
  return found


class Puzzles(NamedTuple):
  """All puzzles of all splits.

  Attributes:
    prompts: [N, L] token ids, padded on the left.
    mask: [N, L].
    codes: [N, M] sorted codes of the right strings, padded with the largest integer.
    strings: [S, T] tokens of every right string, the ending token included.
    lengths: [S].
    puzzle: [S] whose answer it is.
    solution: [S] number of its canonical form.
    splits: puzzles of each split.
  """

  prompts: np.ndarray
  mask: np.ndarray
  codes: np.ndarray
  strings: np.ndarray
  lengths: np.ndarray
  puzzle: np.ndarray
  solution: np.ndarray
  splits: dict[str, list[int]]


def make_puzzles(tokenizer, stop: int) -> Puzzles:
  """Enumerates every right string of every puzzle; the model's vocabulary has no blank, so no string has one."""
  splits, targets = {}, []
  for split in SPLITS:
    splits[split] = list(range(len(targets), len(targets) + len(countdown.targets(split))))
    targets += countdown.targets(split)
  prompts = [tokenization.encode_chat(tokenizer, countdown.prompt(target)) for target in targets]
  width = max(map(len, prompts))
  padded = np.array([[0] * (width - len(ids)) + ids for ids in prompts], np.int32)
  mask = np.arange(width) >= np.array([width - len(ids) for ids in prompts])[:, None]
  rows, solutions = [], {}
  for count in (2, 3):
    for digits in itertools.product("123456789", repeat=count):
      for signs in itertools.product("+-*", repeat=count - 1):
        text = "".join(itertools.chain(*zip(digits, (*signs, ""))))
        if (value := countdown.value(text)) in targets:
          number = solutions.setdefault((value, countdown.solution(text, value)), len(solutions))
          rows.append(([*tokenizer.encode(text, add_special_tokens=False), stop], targets.index(value), number))
  strings = np.zeros((len(rows), LENGTH), np.int32)
  for row, (ids, *_) in enumerate(rows):
    strings[row, : len(ids)] = ids
  lengths, puzzle, solution = (
    np.array([len(r[0]) for r in rows]),
    np.array([r[1] for r in rows]),
    np.array([r[2] for r in rows]),
  )
  coded = np.asarray(code(jnp.asarray(strings), jnp.arange(LENGTH) < lengths[:, None]))
  codes = np.full((len(targets), max(np.bincount(puzzle))), np.iinfo(np.int32).max, np.int32)
  for number in range(len(targets)):
    own = np.sort(coded[puzzle == number])
    assert len(set(own)) == len(own)
    codes[number, : len(own)] = own
  return Puzzles(padded, mask, codes, strings, lengths, puzzle, solution, splits)


def code(tokens, mask):
  """Responses of at most 6 tokens as integers, base 16 from 1; longer ones, which are never right, as -1."""
  digits = jnp.where(mask, tokens + 1, 0)[..., :6]
  value = jnp.sum(digits * 16 ** jnp.arange(6), axis=-1)
  return jnp.where(jnp.any(mask[..., 6:], axis=-1), -1, value)


def score_rows(params, config, prompts, prompt_mask, tokens, mask):
  """TokenStats [R, T] of responses, each behind its own prompt in a row of its own."""
  row = jnp.concatenate([prompts, tokens], axis=1)
  valid = jnp.concatenate([prompt_mask, mask], axis=1)
  positions = jnp.cumsum(valid, axis=1) - 1
  hidden = transformer.forward(params, config, row, positions, transformer.causal_mask(positions, valid), remat=False)
  width = prompts.shape[1]
  logits = transformer.logits(hidden[:, width - 1 : -1], transformer.unembedding(params), config)
  stats = token_stats.from_logits(logits, tokens)
  return jax.tree.map(lambda x: jnp.where(mask, x, 0.0), stats)


def train(point: Point, seed: int, config, reference, stop: int, puzzles: Puzzles, steps: int, evaluate) -> list[dict]:
  """The exact figures along one run, and what was measured on its samples."""
  method = methods.resolve(point.method)
  bounds = {"quality": constraints.reward_floor("reward", point.floor), "kl": constraints.kl_budget(None)}
  if "coherence" in method.multipliers:
    bounds["coherence"] = constraints.coherence_budget(None, 1.0)
  starts = {"quality": 1.0, "kl": 0.0} | dict(method.multipliers)
  starts |= {} if point.start is None else {"quality": point.start}
  dual_params = duals.init_dual_params(
    starts, parametrisation={name: "linear" for name in starts} | {"quality": point.parametrisation}
  )
  gain = 0.05 if point.parametrisation == "linear" else 0.03
  tools = online_step.Optimizers(
    optimizers.adamw(
      learning_rate=point.learning_rate, warmup_steps=2, total_steps=steps, final_fraction=0.1, b1=0.9, b2=0.95,
      weight_decay=0.0, max_grad_norm=1.0,
    ),
    duals.pi_controller(proportional_gain=0.0, integral_gain=gain, smoothing=0.7, cap=1000.0),
  )  # fmt: skip
  objective = online_step.OnlineObjective(method, bounds, replay_weight=0.0, averaging=0.9)
  state = train_state.create(
    jax.tree.map(jnp.copy, reference),
    dual_params,
    jax.random.key(seed),
    optimizer=tools.policy,
    dual_optimizer=tools.dual,
  )
  chosen = jnp.asarray(puzzles.splits["train"])
  flat = lambda x: x.reshape(-1, *x.shape[2:])

  def step(state, index):
    rng = jax.random.fold_in(state.rng, index)
    half = jax.random.permutation(jax.random.fold_in(jax.random.key(seed + 1), index // 2), chosen)
    rows = jax.lax.dynamic_slice_in_dim(half, (index % 2) * PROMPTS, PROMPTS)
    prompts, mask = jnp.asarray(puzzles.prompts)[rows], jnp.asarray(puzzles.mask)[rows]
    rollout = sampler.sample_groups(
      state.params, config, PromptBatch(prompts, mask), rng, group_size=GROUP, max_length=LENGTH,
      temperature=point.temperature, stop_tokens=(stop,), prompt_ids=rows,
    )  # fmt: skip
    own = jnp.asarray(puzzles.codes)[rows]
    found = code(rollout.tokens, rollout.mask)
    place = jax.vmap(jnp.searchsorted)(own, found)
    right = jnp.take_along_axis(own, jnp.minimum(place, own.shape[1] - 1), axis=1) == found
    repeated = lambda x: jnp.repeat(x, GROUP, axis=0)

    def score(params, batch):
      del batch
      stats = score_rows(params, config, repeated(prompts), repeated(mask), flat(rollout.tokens), flat(rollout.mask))
      return jax.tree.map(lambda x: x.reshape(PROMPTS, GROUP, LENGTH), stats)

    everything = jnp.ones((PROMPTS, GROUP), bool)
    batch = online_step.GroupBatch(None, rollout.mask, {"reward": right.astype(jnp.float32)}, everything, ~everything)
    state, metrics = online_step.policy_and_duals(
      state,
      batch,
      jnp.sum(score(reference, None).log_prob, axis=-1),
      score=score,
      objective=objective,
      optimizers=tools,
    )
    kept = ("reward", "entropy", "kl", "length", "dual/quality/multiplier")
    return state, {name: metrics[name] for name in kept}

  scan = jax.jit(lambda state, start: jax.lax.scan(step, state, start + jnp.arange(EVERY)))
  rows = [{"step": 0} | evaluate(state.params)]
  for start in range(0, steps, EVERY):
    state, metrics = scan(state, start)
    measured = {name: float(values[-10:].mean()) for name, values in metrics.items()}
    rows.append({"step": start + EVERY, "measured": measured} | evaluate(state.params))
  return rows


def evaluator(config, puzzles: Puzzles):
  """params -> exact figures a puzzle: P(right), expected different right answers of 64, effective right answers."""
  mask = np.arange(LENGTH) < puzzles.lengths[:, None]
  prompts, prompt_mask = puzzles.prompts[puzzles.puzzle], puzzles.mask[puzzles.puzzle]
  scored = jax.jit(lambda params, *rows: score_rows(params, config, *rows).log_prob.sum(-1))
  rows = tuple(map(jnp.asarray, (prompts, prompt_mask, puzzles.strings, mask)))
  owner = {number: puzzle for number, puzzle in zip(puzzles.solution, puzzles.puzzle)}
  of_solution = np.array([owner[number] for number in range(len(owner))])

  def evaluate(params) -> dict:
    mass = np.bincount(puzzles.solution, np.exp(np.asarray(scored(params, *rows), np.float64)))
    per_puzzle = lambda values: np.bincount(of_solution, values, minlength=len(puzzles.prompts))
    right = per_puzzle(mass)
    share = mass / right[of_solution]
    figures = {
      "right": right,
      "distinct": per_puzzle(-np.expm1(64 * np.log1p(-np.minimum(mass, 1 - 1e-12)))),
      "effective": np.exp(per_puzzle(-share * np.log(np.maximum(share, 1e-300)))),
    }
    return {
      name: {split: [float(f"{values[i]:.6g}") for i in own] for split, own in puzzles.splits.items()}
      for name, values in figures.items()
    }

  return evaluate


def main() -> None:
  """Makes the runs that are not there yet."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("model", help="folder of the reference, by experiments.studies.countdown_model")
  parser.add_argument("out", type=pathlib.Path, help="folder of the results")
  parser.add_argument("names", nargs="*", help=f"points; none for all of {', '.join(points())}")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--steps", type=int, default=STEPS)
  arguments = parser.parse_args()
  arguments.out.mkdir(parents=True, exist_ok=True)
  tokenizer = tokenization.load_tokenizer(arguments.model)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
  config, reference = conversion.load(arguments.model, mesh=mesh, dtype=jnp.dtype("float32"))
  stop = tokenization.stop_token_ids(tokenizer)[0]
  puzzles = make_puzzles(tokenizer, stop)
  evaluate = evaluator(config, puzzles)
  for seed in map(int, arguments.seeds.split(",")):
    for name in arguments.names or points():
      path = arguments.out / f"{name}-seed{seed}.json"
      if path.exists():
        continue
      started = time.process_time()
      rows = train(points()[name], seed, config, reference, stop, puzzles, arguments.steps, evaluate)
      result = {"point": dataclasses.asdict(points()[name]), "seed": seed, "steps": arguments.steps}
      result |= {"cpu_seconds": round(time.process_time() - started, 1), "rows": rows}
      path.write_text(json.dumps(result) + "\n", encoding="utf-8")
      last = rows[-1]
      print(name, seed, f"{result['cpu_seconds']} CPU-s", *(
        f"{split} {np.mean(last['right'][split]):.3f} / {np.mean(last['distinct'][split]):.2f}" for split in ("train", "heldout")
      ), flush=True)  # fmt: skip


if __name__ == "__main__":
  main()
