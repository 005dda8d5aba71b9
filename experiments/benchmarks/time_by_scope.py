"""Where the time of a compiled program goes: the wall time of its operations by the scope that they come from.

  python -m experiments.benchmarks.time_by_scope --programs sample score train --output=time_by_scope.json

The programs are those of the benchmarks' offline and decode cases. Each runs once under the profiler of JAX. At every
instant the operations that run share its time equally; operations that XLA made without a scope are "others". Scopes are
the names that the library gives to its parts, and passes are forward, backward, and forward again for the backward.
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
from experiments import builders
from experiments import offline_builders
from experiments.benchmarks.bench import machine
from experiments.loops import offline
from experiments.loops import runs
from qempo_jax import offline_step
from qempo_jax import packing
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch

SCOPES = ("token_stats", "optimizer", "draw", "attention", "linear", "norm", "rope", "gate")


def by_scope(jitted, *args):
  """({"scope, pass": seconds}, wall seconds, results) of one run after a first."""
  compiled = jitted.lower(*args).compile()
  scopes = scopes_of(compiled.as_text())
  first = jax.block_until_ready(compiled(*jax.tree.map(jnp.copy, args)))
  del first
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      started = time.perf_counter()
      result = jax.block_until_ready(compiled(*args))
      seconds = time.perf_counter() - started
    (path,) = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
    return shares(spans(jax.profiler.ProfileData.from_file(path), scopes)), seconds, result


def scopes_of(program: str) -> dict[str, str]:
  """{an instruction's name: "scope, pass"} from the text of a compiled program."""
  found = {}
  for name, path in re.findall(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', program, re.MULTILINE):
    inside = [scope for part in path.split("/") for scope in SCOPES if re.search(rf"\b{scope}\b", part)]
    again = "rematted_computation" in path
    passed = "recomputed" if again else "backward" if "transpose(" in path else "forward"
    found[name] = f"{inside[0] if inside else 'others'}, {passed}"
  return found


def spans(profile, scopes: dict[str, str]):
  """[(start, end, scope)] in ns of the operations that the profile knows by their instructions."""
  containers = ("while", "call", "conditional", "cond")
  return [
      (event.start_ns, event.start_ns + event.duration_ns, scopes.get(event.name, "others, forward"))
      for plane in profile.planes
      for line in plane.lines
      if "XLAEigen" in line.name
      for event in line.events
      if "::" not in event.name and not event.name.startswith(("end:", *containers))
  ]


def shares(spans) -> dict[str, float]:
  """Seconds of each scope: at every instant those that are at work get the same; "none" where none is."""
  changes = sorted([(start, 1, scope) for start, _, scope in spans] + [(end, -1, scope) for _, end, scope in spans])
  running, seconds, last = collections.Counter(), collections.Counter(), changes[0][0]
  for now, change, scope in changes:
    active = running.total()
    for name, count in running.items():
      seconds[name] += (now - last) / 1e9 * count / active if active else 0
    seconds["none"] += (now - last) / 1e9 if not active else 0
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
  optimizers, state, shardings = runs.initial(config, policy)
  step = offline.compile_step(config, policy, offline_builders.objective(config), optimizers, shardings)
  packed, mask = _pairs(policy)
  return step, (state, offline_step.PairBatch(packed, mask, np.zeros((4, 2), np.float32)), None)


def main() -> None:
  """Measures, prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--programs", nargs="+", choices=("sample", "score", "train"), default=("sample", "score", "train"))
  parser.add_argument("--output")
  args = parser.parse_args()
  config = base.get_config()
  config.offline.loss, config.offline.pairs_per_step = "dpo", 4
  found = {}
  for name in args.programs:
    policy = builders.policy(config)
    program = {"sample": _sample, "score": _score, "train": lambda policy: _train(policy, config)}[name](policy)
    seconds, wall, _ = by_scope(program[0], *program[1])
    found[name] = {"seconds": wall, "by_scope": seconds}
    print(f"{name}: {wall:.2f} s")
    for scope, value in seconds.items():
      print(f"  {value:7.2f} s {value / wall:6.1%}  {scope}")
  if args.output:
    with open(args.output, "w", encoding="utf-8") as file:
      json.dump({"machine": machine.describe(), "jax": jax.__version__, "programs": found}, file, indent=1)


if __name__ == "__main__":
  main()
