"""The TPU compiler's cycle estimates for token statistics in XLA's blocks: of the product and of the sums after it.

  python -m experiments.benchmarks.token_stats_cycles --topology=v5e:2x2 --width=896

The program is compiled on a machine without TPU, which needs libtpu as well as JAX. Each line is an instruction with
the compiler's estimate for one run of it. The compiler has no estimate for the kernel.
"""

import argparse
import re

from experiments import compile_check  # isort: skip  first: it keeps this process off TPUs

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qempo_jax import sharding
from qempo_jax.token_stats import token_stats

_INSTRUCTION = re.compile(r'%(\S+) = (.*?) \w+\(.*kind=(\w+),.*"estimated_cycles":"(\d+)"')


def program(topology: str, implementation: str, *, tokens: int, width: int, vocab_size: int, gradient: bool) -> str:
  """Returns the compiled program's text, for `tokens` tokens on each device, with bfloat16 weights and operands."""
  found = compile_check.devices(topology)
  mesh = sharding.make_mesh((-1, 1, 1), devices=found)
  array = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
  rows, count = P(sharding.ROWS), tokens * len(found)
  arrays = array((count, width), jnp.float32, rows), array((vocab_size, width), jnp.bfloat16, P())
  options = dict(temperature=1.0, chunk_size=1024, compute_dtype="bfloat16", implementation=implementation)

  def stats(hidden, unembedding, targets):
    one = lambda w, h, y: token_stats(h, w, y, **options)
    return sharding.over_rows(one, unembedding, hidden, targets)

  total = lambda *arrays: sum(jnp.sum(jnp.sin(x)) for x in stats(*arrays))
  function = sharding.on_mesh(jax.grad(total, (0, 1)) if gradient else stats, mesh)
  return jax.jit(function).lower(*arrays, array((count,), jnp.int32, rows)).compile().as_text()


def main() -> None:
  """Prints the instructions with the largest estimates."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--tokens", type=int, default=4096, help="tokens on each device")
  parser.add_argument("--width", type=int, default=896)
  parser.add_argument("--vocab", type=int, default=151_936)
  parser.add_argument("--implementation", default="xla")
  parser.add_argument("--gradient", action="store_true")
  a = parser.parse_args()
  shape = dict(tokens=a.tokens, width=a.width, vocab_size=a.vocab, gradient=a.gradient)
  text = program(a.topology, a.implementation, **shape)
  print(f"kernel: {'tpu_custom_call' in text}")
  for line in text.splitlines():
    found = _INSTRUCTION.search(line)
    if found and int(found[4]) > 10_000:
      print(f"{found[4]:>9} cycles  {found[1]} ({found[3]}) -> {found[2]}")


if __name__ == "__main__":
  main()
