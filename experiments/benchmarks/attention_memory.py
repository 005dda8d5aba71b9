"""Largest array in the attention of one packed row and its gradient, by jaxpr: GB of float32, as a Markdown table.

  python -m experiments.benchmarks.attention_memory
  python -m experiments.benchmarks.attention_memory --topology=v5e:2x2 --lengths 1024
  python -m experiments.benchmarks.attention_memory --rounds=5 --prompts 128 --responses 8 --lengths 64 512

"All at once" is each implementation without the ways for long responses: chunks of 128 columns whose keys are gathered,
and on TPUs a mask of the whole row. Nothing is computed.
"""

import argparse
import dataclasses
import itertools
import statistics
import time

from experiments import compile_check  # isort: skip  first: it keeps this process off TPUs

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compile.jaxprs import largest
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.models import blockwise
from qempo_jax.models import positions
from qempo_jax.models import shared_prompt
from qempo_jax.models.config import ModelConfig
from qempo_jax.types import PackedGroups
from qempo_jax.types import RowLayout

HEADS, KEY_HEADS, WIDTH, BUCKET = 32, 8, 128, 128
CONFIG = ModelConfig(32, HEADS * WIDTH, 32, 1, HEADS, KEY_HEADS, WIDTH, 1e4, 1e-5, True)


def row(prompt: int, responses: int, length: int) -> PackedGroups:
  """One abstract row of equally long responses."""
  layout = packing.row_layout(prompt, length, bucket=BUCKET, prompts=1, responses=responses)
  places = packing.bucketed(responses * (length - 1), BUCKET)
  fed, scored = (jax.ShapeDtypeStruct((1, width), jnp.int32) for width in (layout.prompt + places, places + responses))
  return PackedGroups(*[fed] * 3, *[scored] * 4, layout)


def ways(packed: PackedGroups) -> dict:
  """Attention of the row, (q, k, v, packed) -> [P, R, H, K], by name; the kernels are replaced by their operands."""
  layout = packed.layout
  gathered = RowLayout(layout.prompt, BUCKET, layout.reach, layout.prompts, layout.responses)

  def kernel(q, k, v, *masks, **options):
    return q * sum(x.reshape(-1)[0] for x in (k, v, *masks[:-1]))

  def by_parts(q, k, v, packed, joined=None):
    return shared_prompt.by_parts(q, k, v, packed.replace(layout=gathered), CONFIG, joined=joined)

  def masked(q, k, v, packed):
    mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, layout.responses)
    return kernel(q, k, v, mask, CONFIG)

  def blocks(q, k, v, packed):
    return blockwise.attention(
      q, k, v, positions.places(packed), CONFIG, responses=layout.responses, block=shared_prompt.block_size(layout)
    )

  def by_responses(q, k, v, packed):
    return shared_prompt.by_responses(q, k, v, packed, CONFIG, window=None, kernel=kernel)

  return {
    "XLA, all at once": by_parts,
    "XLA, blocks": blocks,
    "cuDNN, all at once": lambda *arrays: by_parts(*arrays, joined=kernel),
    "TPU mask, all at once": masked,
    "both kernels, by responses": by_responses,
  }


def arrays(packed: PackedGroups):
  """Abstract queries, keys and values of the row."""
  shape = lambda heads: jax.ShapeDtypeStruct((*packed.tokens.shape, heads, WIDTH), jnp.float32)
  return shape(HEADS), shape(KEY_HEADS), shape(KEY_HEADS)


def gradient(way):
  """The gradient of a sum of the attention, by queries, keys and values."""
  return jax.grad(lambda q, k, v, packed: jnp.sum(jnp.sin(way(q, k, v, packed))), argnums=(0, 1, 2))


def compiled(packed: PackedGroups, topology: str, shape: tuple[int, ...]) -> int:
  """Temporary bytes of a device for the gradient of a row on each data-parallel device, compiled for TPUs.

  The way is the one that training takes. Operands are float32 with bfloat16 products.
  """
  mesh = sharding.make_mesh(shape, devices=compile_check.devices(topology))
  config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
  where = sharding.batch_sharding(mesh)
  one_each = lambda x: jax.ShapeDtypeStruct((mesh.shape["data"], *x.shape[1:]), x.dtype, sharding=where)
  way = lambda q, k, v, packed: shared_prompt.attender(packed, config)(*map(sharding.split_tokens, (q, k, v)), None)
  function = jax.jit(sharding.on_mesh(gradient(way), mesh))
  program = function.lower(*jax.tree.map(one_each, (*arrays(packed), packed))).compile()
  return program.memory_analysis().temp_size_in_bytes


def seconds(prompt: int, responses: int, length: int, rounds: int) -> dict[str, list[float]]:
  """Seconds of the gradient for one row with an eighth of the heads and bucket 64, by way, each way in turn."""
  rng = np.random.default_rng(0)
  groups = [[[1] * n for n in rng.integers(length // 2, length + 1, responses)]]
  packed = jax.tree.map(jnp.asarray, packing.pack_groups([[1] * prompt], groups, bucket=64))
  draw = lambda heads: jnp.asarray(rng.normal(size=(*packed.tokens.shape, heads, WIDTH)), jnp.float32)
  qkv, places, layout = (draw(4), draw(1), draw(1)), positions.places(packed), packed.layout
  parts = lambda chunk: (
    lambda *qkv: shared_prompt.by_parts(*qkv[:3], packed.replace(layout=layout._replace(chunk=chunk)), CONFIG)
  )
  found = {
    "chunks of a bucket": parts(64),
    "chunks as packed": parts(layout.chunk),
    "blocks": lambda *qkv: blockwise.attention(
      *qkv[:3], places, CONFIG, responses=responses, block=shared_prompt.block_size(layout)
    ),
  }
  programs = {name: jax.jit(gradient(way)).lower(*qkv, None).compile() for name, way in found.items()}
  times = {name: [] for name in programs}
  for _ in range(rounds + 1):
    for name, program in programs.items():
      started = time.process_time()
      jax.block_until_ready(program(*qkv, None))
      times[name].append(time.process_time() - started)
  return {name: several[1:] for name, several in times.items()}


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--prompts", type=int, nargs="+", default=[512, 1024])
  parser.add_argument("--responses", type=int, nargs="+", default=[8, 16])
  parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192, 32768])
  parser.add_argument("--topology", help="compile for these TPUs instead, such as v5e:2x2, and print temporary memory")
  parser.add_argument("--mesh", default="-1,1,1", help="of the TPUs")
  parser.add_argument("--rounds", type=int, default=0, help="run the ways on this machine instead, in so many rounds")
  a = parser.parse_args()
  titled = False
  for prompt, responses, length in itertools.product(a.prompts, a.responses, a.lengths):
    if a.rounds:
      times = seconds(prompt, responses, length, a.rounds)
      first = next(iter(times.values()))
      ratio = lambda several, first=first: statistics.median(x / y for x, y in zip(several, first))
      said = [f"{name} {statistics.median(ts):.3f} ({ratio(ts):.2f})" for name, ts in times.items()]
      print(f"{prompt}, {responses}, {length}: CPU seconds (share of the first): {', '.join(said)}", flush=True)
      continue
    packed = row(prompt, responses, length)
    sizes = {"q": arrays(packed)[0].size * 4}
    if a.topology:
      sizes[f"{a.topology}, mesh {a.mesh}"] = compiled(packed, a.topology, tuple(map(int, a.mesh.split(","))))
    else:
      sizes |= {name: largest(gradient(way), *arrays(packed), packed) for name, way in ways(packed).items()}
    if not titled:
      print("| L, G, T | " + " | ".join(sizes) + " |\n" + "|---" * (len(sizes) + 1) + "|")
      titled = True
    figures = " | ".join(f"{size / 1e9:.2f}" for size in sizes.values())
    print(f"| {prompt}, {responses}, {length} | {figures} |", flush=True)


if __name__ == "__main__":
  main()
