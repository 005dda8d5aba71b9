"""Time and temporary memory of a training step's gradient as one size grows: tokens, group, vocabulary or layers.

Parameters are random, with SmolLM2-135M's width and six layers, so that the largest point stays small. Temporary memory
is the compiled program's own figure, without parameters, batch and gradient.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.bench import serving
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig

BASE = ModelConfig(49152, 576, 1536, 6, 9, 3, 64, 10_000.0, 1e-5, True)
TINY = ModelConfig(512, 64, 128, 2, 4, 2, 16, 10_000.0, 1e-5, True)
ROWS = {"rows": 4, "group": 2, "prompt": 64, "response": 96}
AXES = {
  "tokens": [ROWS | {"rows": rows} for rows in (2, 4, 6, 8, 12)],
  "group": [{"rows": 1, "group": group, "prompt": 256, "response": 32} for group in (8, 16, 32, 48, 64)],
  "vocabulary": [ROWS | {"vocab_size": 16384 * times} for times in (1, 2, 4, 6, 8)],
  "layers": [ROWS | {"num_layers": layers} for layers in (2, 4, 8, 12, 16)],
}
REPEATS = 3


def size(axis: str, point: dict) -> int:
  """Returns a point's value of the axis."""
  if axis == "tokens":
    return point["rows"] * (point["prompt"] + point["group"] * point["response"])
  return point[{"group": "group", "vocabulary": "vocab_size", "layers": "num_layers"}[axis]]


def prepare(spec: dict):
  """Returns a step that measures all points of the axis in turn, REPEATS times."""
  axis, base = spec["options"]["axis"], TINY if spec["tiny"] else BASE
  points = AXES[axis][:2] if spec["tiny"] else AXES[axis]
  programs = [_program(base, point) for point in points]

  def step():
    seconds = [[] for _ in points]
    for _ in range(REPEATS):
      for index, (program, params, packed) in enumerate(programs):
        started = time.perf_counter()
        jax.block_until_ready(program(params, packed))
        seconds[index].append(time.perf_counter() - started)
    temporary = [program.memory_analysis().temp_size_in_bytes for program, *_ in programs]
    return {"sizes": [size(axis, point) for point in points], "seconds_of": seconds, "temporary_bytes": temporary}

  return step


def _program(base, point):
  names = {field.name for field in dataclasses.fields(base)}
  config = dataclasses.replace(base, **{name: value for name, value in point.items() if name in names})
  params = parameters.init(jax.random.key(0), config)
  rng = np.random.default_rng(0)
  tokens = lambda *shape: rng.integers(0, config.vocab_size, shape).tolist()
  rows, group, length = point["rows"], point["group"], point["response"]
  packed = packing.pack_groups(tokens(rows, point["prompt"]), tokens(rows, group, length), bucket=32)

  def loss(params, packed):
    stats = scoring.score_groups(
      params, config, packed, group_size=group, max_length=length, temperature=1.0, chunk_size=256
    )
    return jnp.mean(stats.log_prob + 0.1 * stats.entropy)

  return jax.jit(jax.grad(loss)).lower(params, packed).compile(), params, packed


if __name__ == "__main__":
  serving.serve(prepare)
