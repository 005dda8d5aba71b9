"""Wall time of a compiled program's operations, by the library's scope that they come from.

  python -m experiments.benchmarks.time_by_scope --output=time_by_scope.json

The programs are those of the benchmarks' decode and offline cases: sampling, the reference's scores, the training step.
Each runs once under JAX's profiler, on a CPU, after a first run. Operations that run at the same time share it equally.
An operation that XLA fused counts for the scope of its last part.

Scopes are the library's names of its parts; "others" has none. Passes are forward, backward, and "again", the forward
pass recomputed for the backward. "unrecorded" is time without a recorded operation: products may run on after their
record ends.
"""

import argparse
import collections
import glob
import json
import re
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from experiments import build
from experiments import plan as plans
from experiments.batches import pairs
from experiments.benchmarks.bench import machine
from experiments.configured import policy as build_policy
from qempo_jax import packing
from qempo_jax.errors import InputError
from qempo_jax.sampling import sampler
from qempo_jax.train import offline_step
from qempo_jax.types import PromptBatch

SCOPES = ("token_stats", "optimizer", "draw", "attention", "linear", "norm", "rope", "gate")


def by_scope(jitted, *args) -> tuple[dict[str, float], float]:
  """Returns ({"scope, pass": seconds}, wall seconds) of one run after a first.

  Args:
    jitted: a jitted function; it may donate arguments.
    *args: its arguments.

  Raises:
    InputError: the profile holds none of the program's operations.
  """
  compiled = jitted.lower(*args).compile()
  jax.block_until_ready(compiled(*jax.tree.map(jnp.copy, args)))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      started = time.perf_counter()
      jax.block_until_ready(compiled(*args))
      seconds = time.perf_counter() - started
    (path,) = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
    found = spans(jax.profiler.ProfileData.from_file(path), scopes_of(compiled.as_text()))
  if not found:
    raise InputError("the profile holds none of the program's operations: measure on a CPU, whose profiles name them")
  return shares(found), seconds


def scopes_of(program: str) -> dict[str, str]:
  """Maps each instruction's name in a compiled program's text to "scope, pass"; instructions that run others are left out."""
  found = {}
  for name, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE):
    path = re.search(r'op_name="([^"]*)"', rest)
    path = path[1] if path else ""
    scope = next((scope for part in path.split("/") for scope in SCOPES if re.search(rf"\b{scope}\b", part)), "others")
    passed = "again" if "rematted_computation" in path else "backward" if "transpose(" in path else "forward"
    if not name.startswith(("while", "call", "conditional")):
      found[name] = f"{scope}, {passed}"
  return found


def spans(profile, scopes: dict[str, str]) -> list[tuple[float, float, str]]:
  """Returns (start, end, scope) in ns of a profile's operations."""
  events = (event for plane in profile.planes for line in plane.lines for event in line.events)
  return [(e.start_ns, e.start_ns + e.duration_ns, scopes[e.name]) for e in events if e.name in scopes]


def shares(spans) -> dict[str, float]:
  """Seconds of each scope, largest first; operations that run at the same time share it equally."""
  changes = sorted([(start, 1, scope) for start, _, scope in spans] + [(end, -1, scope) for _, end, scope in spans])
  running, seconds, last = collections.Counter(), collections.Counter(), changes[0][0]
  for now, change, scope in changes:
    active = running.total()
    for name, count in running.items() if active else [("unrecorded", 1)]:
      seconds[name] += (now - last) * count / (active or 1) / 1e9
    running[scope] += change
    last = now
  return {name: value for name, value in seconds.most_common() if value}


def _sample(policy):
  batch = PromptBatch(jnp.ones((8, 64), jnp.int32), jnp.ones((8, 64), bool))
  settings = {"group_size": 16, "max_length": 64, "temperature": 1.0, "stop_tokens": ()}
  run = jax.jit(lambda params, rng: sampler.sample_groups(params, policy.config, batch, rng, **settings))
  return run, (policy.params, jax.random.key(0))


def _pairs(policy):
  tokens = np.random.default_rng(0).integers(policy.config.vocab_size, size=(4, 384))
  packed = packing.pack_groups(tokens[:, :128].tolist(), tokens[:, 128:].reshape(4, 2, 128).tolist(), bucket=64)
  return packed, np.ones((4, 2, 128), bool)


def _score(policy):
  packed, mask = _pairs(policy)
  chosen = {"temperature": 1.0, "chunk_size": 1024, "config": policy.config}
  score = jax.jit(lambda params, batch: offline_step.score(params, batch, **chosen).log_prob.sum(-1))
  return score, (policy.params, offline_step.PairBatch(packed, mask, None))


def _train(policy, config):
  plan = build.plan(config, policy)
  state, shardings = plans.initial(plan.first_state, policy.params, policy.mesh)
  step = pairs.compile_step(plan, shardings)
  packed, mask = _pairs(policy)
  return step, (state, offline_step.PairBatch(packed, mask, np.zeros((4, 2), np.float32)), None)


def main() -> None:
  """Measures, prints and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--programs", nargs="+", choices=("sample", "score", "train"), default=("sample", "score", "train")
  )
  parser.add_argument("--output")
  args = parser.parse_args()
  config = base.get_config()
  config.offline.loss, config.offline.pairs_per_step = "dpo", 4
  found = {}
  makers = {"sample": _sample, "score": _score, "train": lambda policy: _train(policy, config)}
  for name in args.programs:
    run, inputs = makers[name](build_policy.policy(config))
    seconds, wall = by_scope(run, *inputs)
    found[name] = {"seconds": wall, "by_scope": seconds}
    print(f"{name}: {wall:.2f} s")
    for scope, value in seconds.items():
      print(f"  {value:7.2f} s {value / wall:6.1%}  {scope}")
  if args.output:
    with open(args.output, "w", encoding="utf-8") as file:
      json.dump({"machine": machine.describe(), "jax": jax.__version__, "programs": found}, file, indent=1)


if __name__ == "__main__":
  main()
