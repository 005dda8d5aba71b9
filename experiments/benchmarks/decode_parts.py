"""Where a token step of sampling spends its time: products, attention over keys and values, draws; each timed alone.

  python -m experiments.benchmarks.decode_parts --output=decode_parts.json

The parts take the shapes that the sampler gives them, its rings included, and run in turn with the whole sampler. What a
part costs beside the others may be more: each then finds the processor's caches full of the others' numbers.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from experiments.benchmarks import decoding
from experiments.benchmarks.bench import machine
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.sampling import draws
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch


def attention(config, *, prompts: int, group: int, prompt: int, tokens: int):
  """(every step's attention of all blocks, bytes of keys and values that these read)."""
  shape = (config.num_layers, prompts, prompt, config.num_kv_heads, config.head_dim)
  store = jax.random.normal(jax.random.key(0), shape)
  rings = sampler.ring_sizes(tokens)
  mask = jnp.ones((prompts, prompt), bool)
  q = jax.random.normal(jax.random.key(1), (prompts, group, config.num_heads, config.head_dim))

  def step(_, state):
    q, cache = state
    sees, stored = cache.sees(), []
    for layer in cache.layers:
      fresh = q[:, :, : config.num_kv_heads]
      mixed, new = layer.attend(q, fresh, fresh, cache.clock % cache.ring, *sees, config)
      q = q + mixed
      stored.append(new)
    return q, cache.advance(stored)

  @jax.jit
  def all_steps(q, store):
    state = q, KVCache.create(store, store, mask, group_size=group, max_length=rings[0])
    for before, ring in zip((0, *rings), rings):
      state = jax.lax.fori_loop(before, ring, step, (state[0], state[1].grown(ring)))
    return state[0]

  places = sum((ring - before) * ring for before, ring in zip((0, *rings), rings))
  size = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
  run = lambda: jax.block_until_ready(all_steps(q, store))
  return run, size * prompts * (group * places + tokens * prompt)


def main() -> None:
  """Measures, prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, default in {"prompts": 8, "group": 16, "prompt": 64, "tokens": 64, "repeats": 5}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--output")
  args = parser.parse_args()
  sizes = {"prompts": args.prompts, "group": args.group, "prompt": args.prompt, "tokens": args.tokens}
  config, params = conversion.load(demo_model.demo_model_path())
  params, samples = jax.tree.map(jnp.asarray, params), args.prompts * args.group
  batch = PromptBatch(*(jnp.ones((args.prompts, args.prompt), dtype) for dtype in (jnp.int32, bool)))
  settings = {"group_size": args.group, "max_length": args.tokens, "temperature": 1.0, "stop_tokens": ()}
  attend, read = attention(config, **sizes)
  one_product = decoding.floor(config, params, samples)
  logits, uniform = jax.random.normal(jax.random.key(2), (samples, config.vocab_size)), jnp.full(samples, 0.5)
  one_draw = jax.jit(draws.draw)
  times_of = lambda run: lambda: [run() for _ in range(args.tokens)]
  parts = {
      "sampler": lambda: jax.block_until_ready(sampler.sample_groups(params, config, batch, jax.random.key(0), **settings)),
      "products": times_of(one_product),
      "attention": attend,
      "draws": times_of(lambda: jax.block_until_ready(one_draw(uniform, logits))),
  }
  seconds = {name: [] for name in parts}
  for turn in range(args.repeats + 1):
    for name, run in parts.items():
      started = time.perf_counter()
      run()
      if turn:
        seconds[name].append(time.perf_counter() - started)
  result = {"setting": vars(args), "machine": machine.describe(), "jax": jax.__version__, "seconds": seconds, "read_bytes": read}
  for name, times in seconds.items():
    print(f"{name}: {statistics.median(times) / args.tokens * 1e3:.0f} ms a token step ({min(times):.2f}-{max(times):.2f} s in all)")
  print(f"attention reads {read / args.tokens / 1e6:.0f} MB a token step, {read / statistics.median(seconds['attention']) / 1e9:.1f} GB/s")
  if args.output:
    with open(args.output, "w", encoding="utf-8") as file:
      json.dump(result, file, indent=1)


if __name__ == "__main__":
  main()
